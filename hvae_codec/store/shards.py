"""Chunks of a latent array on a local disk, read without an event loop, and kept decoded as long as there is room.

    z16/c/<row group>/0/0/0     chunk | chunk | ... | offset and length of each chunk | CRC-32C
    chunk                       transpose, bytes, blosc, crc32c

zarr reads a part of a shard in about a millisecond an array, most of it spent between threads: too long for one image.
This reads the same bytes in a tenth of that, checks the same checksums, and starts no threads, so that a process may
be forked around it. Arrays with other codecs or elsewhere than on a local disk are left to zarr.
"""

from __future__ import annotations

import collections
import contextlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import google_crc32c
import numcodecs
import numpy as np
import zarr
from numpy.typing import NDArray

CACHE_BYTES = 64 * 2**20
MISSING = 2**64 - 1
"""Offset and length of a chunk that was never written."""
INDEX_ENTRY = 16
"""Bytes that a shard's index has for each chunk."""
_INDEX_CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
_KEYS = {"name": "default", "configuration": {"separator": "/"}}
_BLOSC = numcodecs.Blosc()  # the settings are for writing; a compressed chunk says how to read it


class ChunkCache:
    """Decoded chunks and shard indices, the least recently used dropped first; at most `limit` bytes."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit = limit
        self.held = 0
        """Bytes in it now."""
        self._arrays: collections.OrderedDict[object, NDArray] = collections.OrderedDict()
        self._changing = threading.Lock()

    def get(self, key: object) -> NDArray | None:
        """The array of `key`, where it is still there."""
        array = self._arrays.get(key)
        if array is not None:
            with contextlib.suppress(KeyError):  # another thread has dropped it meanwhile
                self._arrays.move_to_end(key)
        return array

    def put(self, key: object, array: NDArray) -> None:
        """Keep `array`, which nobody may change from now on."""
        # Nobody waits for the lock: not a thread, and not a forked process whose copy of it is never released.
        if array.nbytes > self.limit or not self._changing.acquire(blocking=False):
            return
        try:
            if key in self._arrays:
                self.held -= self._arrays.pop(key).nbytes
            self._arrays[key] = array
            self.held += array.nbytes
            while self.held > self.limit:
                self.held -= self._arrays.popitem(last=False)[1].nbytes
        finally:
            self._changing.release()


@dataclass(frozen=True)
class ShardedArray:
    """A latent array [images, columns, ...] whose shards are files."""

    folder: Any
    """Folder of the array, a `Path`; a subclass has other places."""
    shard: int
    """Images in a shard."""
    chunk: tuple[int, ...]
    """Shape of a chunk, images first."""
    order: tuple[int, ...]
    """Order of a chunk's axes when it is compressed."""
    dtype: np.dtype
    """Type of the elements."""
    fill_value: float | int
    """What images read as that were never written."""
    cache: ChunkCache
    """Shared by the arrays of a store."""

    @classmethod
    def of(cls, array: zarr.Array, folder: Any, cache: ChunkCache) -> Self | None:
        """Reads `array`, whose files are in `folder`; None where it is not laid out as this package does."""
        metadata = array.metadata.to_dict()
        codecs: Any = metadata["codecs"]
        order = _order_of(codecs, array.ndim)
        shards = array.shards or (0,)
        whole = shards[1:] == array.chunks[1:] == array.shape[1:]
        if order is None or not whole or metadata.get("chunk_key_encoding") != _KEYS:
            return None
        fill_value: Any = array.fill_value
        return cls(folder, shards[0], array.chunks, order, array.dtype, fill_value, cache)

    def read(self, rows: Sequence[int]) -> NDArray[np.generic]:
        """Elements of the images at `rows`, which must be there, in that order: [len(rows), columns, ...].

        Images that were never written read as the fill value. Raises `ValueError` on damage.
        """
        if len(rows) == 1:
            number, place = divmod(rows[0], self.chunk[0])
            return self._chunk(number)[place : place + 1].copy()
        wanted = np.asarray(rows, dtype=np.int64)
        out = np.empty((len(wanted), *self.chunk[1:]), self.dtype)
        groups = list(_grouped(wanted // self.chunk[0]))
        for (number, at), chunk in zip(groups, self._chunks([number for number, _ in groups]), strict=True):
            out[at] = chunk[wanted[at] - number * self.chunk[0]]
        return out

    def _chunks(self, numbers: Sequence[int]) -> Iterator[NDArray[np.generic]]:
        return map(self._chunk, numbers)

    def _chunk(self, number: int) -> NDArray[np.generic]:
        """Chunk `number` of the array, [images, columns, ...]."""
        row_group, place = divmod(number * self.chunk[0], self.shard)
        path = f"{self.folder}/c/{row_group}{'/0' * (len(self.chunk) - 1)}"
        try:
            chunk = self.cache.get((*_shard_key(path, os.stat(path)), place))
            if chunk is None:
                chunk = self._read(path, place)
        except FileNotFoundError:
            chunk = None
        return self._unwritten() if chunk is None else chunk

    def _read(self, path: str, place: int) -> NDArray[np.generic] | None:
        """The chunk with the image `place` of the shard `path`, counted in it; None where it was never written."""
        with open(path, "rb", buffering=0) as file:
            # Of the open file: the path may be another one's by now.
            shard = _shard_key(path, os.fstat(file.fileno()))
            index = self.cache.get(shard)
            chunk = None
            if index is not None:
                with contextlib.suppress(
                    ValueError
                ):  # of a file system whose times and numbers do not tell files apart
                    chunk = self._read_chunk(file, index, place)
            if chunk is None:
                index = _read_index(file, self.shard // self.chunk[0])
                self.cache.put(shard, index)
                chunk = self._read_chunk(file, index, place)
        if chunk is not None:
            self.cache.put((*shard, place), chunk)
        return chunk

    def _read_chunk(self, file: Any, index: NDArray[np.generic], place: int) -> NDArray[np.generic] | None:
        offset, length = map(int, index[place // self.chunk[0]])
        if offset == length == MISSING:
            return None
        return self._decode(checked(_read_bytes(file, offset, length)))

    def _decode(self, compressed: bytes) -> NDArray[np.generic]:
        shape = [self.chunk[axis] for axis in self.order]
        flat = np.frombuffer(_BLOSC.decode(compressed), self.dtype.newbyteorder("<"))
        return flat.reshape(shape).transpose(np.argsort(self.order))

    def _unwritten(self) -> NDArray[np.generic]:
        return np.broadcast_to(np.asarray(self.fill_value, self.dtype), self.chunk)


def _shard_key(path: str, state: os.stat_result) -> tuple[str, int, int, int]:
    """Names the content of a shard: one that was replaced meanwhile is another one."""
    return (path, state.st_ino, state.st_mtime_ns, state.st_size)


def _order_of(codecs: Sequence[Mapping[str, Any]], axes: int) -> tuple[int, ...] | None:
    """Order of a chunk's axes where `codecs` are those of docs/format.md, None where they are others."""
    if [codec["name"] for codec in codecs] != ["sharding_indexed"]:
        return None
    sharding = codecs[0]["configuration"]
    inner = {codec["name"]: codec.get("configuration", {}) for codec in sharding["codecs"]}
    names = [codec["name"] for codec in sharding["codecs"] if codec["name"] != "transpose"]
    index = [{key: value for key, value in codec.items() if value != {}} for codec in sharding["index_codecs"]]
    if names != ["bytes", "blosc", "crc32c"] or list(inner).index("bytes") > 1:
        return None
    little = inner["bytes"].get("endian", "little") == "little"
    if not little or index != _INDEX_CODECS or sharding.get("index_location", "end") != "end":
        return None
    return tuple(inner.get("transpose", {}).get("order", range(axes)))


def _grouped(numbers: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each distinct one of `numbers`, with where it stands."""
    if len(numbers) and (numbers == numbers[0]).all():
        yield int(numbers[0]), np.arange(len(numbers))
        return
    order = np.argsort(numbers, kind="stable")
    distinct, starts = np.unique(numbers[order], return_index=True)
    yield from zip(distinct.tolist(), np.split(order, starts[1:]), strict=False)


def _read_index(file: Any, chunks: int) -> NDArray[np.uint64]:
    """Offset and length of each chunk of a shard, [chunks, 2]."""
    length = INDEX_ENTRY * chunks + 4
    return parse_index(_read_bytes(file, file.seek(0, os.SEEK_END) - length, length), chunks)


def parse_index(data: bytes, chunks: int) -> NDArray[np.uint64]:
    """Offset and length of each of a shard's chunks, [chunks, 2], of the bytes at its end; `ValueError` on damage."""
    return np.frombuffer(checked(data), "<u8").reshape(chunks, 2)


def _read_bytes(file: Any, offset: int, length: int) -> bytes:
    if offset < 0:
        raise ValueError("the file is too short to be a shard")
    file.seek(offset)
    data: bytes = file.read(length)
    if len(data) != length:
        raise ValueError(f"the shard ends at byte {offset + len(data)}, within a chunk")
    return data


def checked(data: bytes) -> bytes:
    """`data` without the CRC-32C at its end; `ValueError` where that is another one's."""
    content = data[:-4]
    if len(data) < 4 or google_crc32c.value(content) != int.from_bytes(data[-4:], "little"):
        raise ValueError("its checksum does not match")
    return content
