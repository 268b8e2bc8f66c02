"""Chunks of a latent array, read without zarr, and cached decoded as long as there is room.

    z16/c/<row group>/0/0/0     chunk | chunk | ... | offset and length of each chunk | CRC-32C
    chunk                       transpose, bytes, blosc or zstd, crc32c; or the archive codec

One random image of a store with 4 arrays, on a local disk:

    this                    0.35 ms, and 0.065 ms if its chunks are cached
    zarr 3.1.6              5.9 ms, most of it spent between threads
    zarr 3.4.2, fused       3.3 ms
    tensorstore             0.45 ms, but it aborts a forked child, and a `DataLoader` forks

The same bytes are read and the same checksums checked. Files are read without threads, so that a process may be forked
around them. In a bucket a request takes some ten milliseconds however little it brings: those of all shards go out at
the same time, and those for chunks that stand close together are made as one. Arrays with other codecs are left to
zarr.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from ..storage.cache import ChunkCache
from ..storage.location import Location
from .checksums import without_checksum
from .compressors import Unpack, unpacker_of

UNWRITTEN = 2**64 - 1  # offset and length of a chunk that was never written
INDEX_ENTRY = 16  # bytes that a shard's index has for each chunk
_INDEX_CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
_KEYS = {"name": "default", "configuration": {"separator": "/"}}


@dataclass(frozen=True)
class ShardedArray:
    """A latent array [images, columns, ...] in shards."""

    location: Location  # of the array
    shard: int  # images in a shard
    chunk: tuple[int, ...]  # shape of a chunk, images first
    unpack: Unpack  # the bytes of a chunk to a chunk
    dtype: np.dtype  # type of the elements
    fill_value: float | int  # what images read as that were never written
    cache: ChunkCache  # shared by the arrays of a store

    @classmethod
    def of(cls, array: zarr.Array, location: Location, cache: ChunkCache) -> ShardedArray | None:
        """Reads `array`, which is at `location`; None if it is not laid out as this package does."""
        metadata = array.metadata.to_dict()
        codecs: Any = metadata["codecs"]
        unpack = _unpacker(codecs, array)
        shards = array.shards or (0,)
        whole = shards[1:] == array.chunks[1:] == array.shape[1:]
        if unpack is None or not whole or metadata.get("chunk_key_encoding") != _KEYS:
            return None
        fill_value: Any = array.fill_value
        return cls(location, shards[0], array.chunks, unpack, array.dtype, fill_value, cache)

    def read(self, rows: Sequence[int]) -> NDArray[np.generic]:
        """Elements of the images at `rows`, which must be there, in that order: [len(rows), columns, ...].

        Images that were never written read as the fill value. Raises `ValueError` on damage.
        """
        if len(rows) == 1:
            number, index = divmod(rows[0], self.chunk[0])
            return self._chunk(number)[index : index + 1].copy()
        wanted = np.asarray(rows, dtype=np.int64)
        out = np.empty((len(wanted), *self.chunk[1:]), self.dtype)
        groups = list(_grouped(wanted // self.chunk[0]))
        for (number, at), chunk in zip(groups, self._chunks([number for number, _ in groups]), strict=True):
            out[at] = chunk[wanted[at] - number * self.chunk[0]]
        return out

    @functools.cached_property
    def _per_shard(self) -> int:
        return self.shard // self.chunk[0]

    def _chunks(self, numbers: Sequence[int]) -> Iterator[NDArray[np.generic]]:
        """The chunks `numbers`, ascending; in a folder those of one shard at a time."""
        shards = itertools.groupby(numbers, lambda number: number // self._per_shard)
        asked = [(row_group, list(some)) for row_group, some in shards]
        return itertools.chain.from_iterable(self.location.map(self._chunks_of, asked))

    def _chunk(self, number: int) -> NDArray[np.generic]:
        """Chunk `number`, [images, columns, ...]: what `_chunks_of` gives, in less time if it is cached."""
        try:
            identity = self.location.identify(self._key(number // self._per_shard))
            chunk = self.cache.get((*identity, number))
        except FileNotFoundError:
            return self._unwritten()
        return self._chunks_of((number // self._per_shard, [number]))[0] if chunk is None else chunk

    def _chunks_of(self, asked: tuple[int, list[int]]) -> list[NDArray[np.generic]]:
        """Chunks of one shard, [images, columns, ...] each: its row group, and their numbers in the array."""
        row_group, numbers = asked
        key = self._key(row_group)
        found: list[NDArray[np.generic] | None] = [None] * len(numbers)
        with contextlib.suppress(FileNotFoundError):
            identity = self.location.identify(key)
            found = [self.cache.get((*identity, number)) for number in numbers]
            lost = [i for i, chunk in enumerate(found) if chunk is None]
            if lost:
                with self.location.open_ranges(key) as shard:
                    for i, chunk in zip(lost, self._read(shard, [numbers[i] for i in lost]), strict=True):
                        found[i] = chunk
        return [self._unwritten() if chunk is None else chunk for chunk in found]

    def _key(self, row_group: int) -> str:
        return f"c/{row_group}{'/0' * (len(self.chunk) - 1)}"

    def _read(self, shard: Any, numbers: Sequence[int]) -> list[NDArray[np.generic] | None]:
        """Chunks of a shard, which are cached; None for those that were never written."""
        identity = shard.identity  # its name may be another one's by now
        index, chunks = self.cache.get(identity), None
        if index is not None:
            with contextlib.suppress(ValueError):  # the shard was replaced, and its identity does not tell
                chunks = self._read_chunks(shard, index, numbers)
        if chunks is None:
            index = _parse_index(shard.read_end(INDEX_ENTRY * self._per_shard + 4), self._per_shard)
            self.cache.put(identity, index)
            chunks = self._read_chunks(shard, index, numbers)
        for number, chunk in zip(numbers, chunks, strict=True):
            if chunk is not None:
                self.cache.put((*identity, number), chunk)
        return chunks

    def _read_chunks(
        self, shard: Any, index: NDArray[np.generic], numbers: Sequence[int]
    ) -> list[NDArray[np.generic] | None]:
        entries = [index[number % self._per_shard].tolist() for number in numbers]
        written = [entry for entry in entries if entry != [UNWRITTEN, UNWRITTEN]]
        parts = iter(shard.read_ranges(*zip(*written, strict=True)) if written else ())
        return [None if entry == [UNWRITTEN, UNWRITTEN] else self.unpack(next(parts)) for entry in entries]

    def _unwritten(self) -> NDArray[np.generic]:
        return np.broadcast_to(np.asarray(self.fill_value, self.dtype), self.chunk)


def _unpacker(codecs: Sequence[Mapping[str, Any]], array: zarr.Array) -> Unpack | None:
    """What unpacks a chunk of `array` if its `codecs` are those of docs/format.md, None if they are others."""
    if [codec["name"] for codec in codecs] != ["sharding_indexed"]:
        return None
    sharding = codecs[0]["configuration"]
    index = [{key: value for key, value in codec.items() if value != {}} for codec in sharding["index_codecs"]]
    if index != _INDEX_CODECS or sharding.get("index_location", "end") != "end":
        return None
    return unpacker_of(sharding["codecs"], array.chunks, array.dtype)


def _grouped(numbers: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each distinct one of `numbers`, with its indices."""
    if len(numbers) and (numbers == numbers[0]).all():
        yield int(numbers[0]), np.arange(len(numbers))
        return
    order = np.argsort(numbers, kind="stable")
    distinct, starts = np.unique(numbers[order], return_index=True)
    yield from zip(distinct.tolist(), np.split(order, starts[1:]), strict=False)


def _parse_index(data: bytes, chunks: int) -> NDArray[np.uint64]:
    """Offset and length of each of a shard's chunks, [chunks, 2], from the bytes at its end; `ValueError` on damage."""
    return np.frombuffer(without_checksum(data), "<u8").reshape(chunks, 2)
