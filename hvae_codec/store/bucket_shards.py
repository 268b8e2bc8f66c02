"""Chunks of a latent array in a bucket: many at once, the index of a shard once, decoded ones kept.

    first images of a shard    last bytes of the object (the index), then the bytes of their chunks
    others                     the bytes of their chunks, or nothing where these are still there

A request takes some ten milliseconds however little it brings. So those of all shards go out at the same time, and
those for chunks that stand close together are made as one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import zarr
from numpy.typing import NDArray

from ..storage.bucket import RemotePath
from ..storage.location import Location, each
from .shards import INDEX_ENTRY, MISSING, ChunkCache, ShardedArray, checked, parse_index


def sharded_array(array: zarr.Array, place: Location, cache: ChunkCache) -> ShardedArray | None:
    """Reads the latent array `array` at `place`; None where zarr must, because it is laid out in another way."""
    if isinstance(place, RemotePath):
        return RemoteShardedArray.of(array, place, cache)
    return ShardedArray.of(array, place, cache)


@dataclass(frozen=True)
class RemoteShardedArray(ShardedArray):
    """A latent array whose shards are objects of a bucket.

    What was read is kept without asking whether the object has changed. A shard that was replaced meanwhile gives its
    old or its new chunks, never a mixture within one.
    """

    folder: RemotePath

    def _chunk(self, number: int) -> NDArray[np.generic]:
        return next(self._chunks([number]))

    def _chunks(self, numbers: Sequence[int]) -> Iterator[NDArray[np.generic]]:
        of_shard: dict[int, list[int]] = {}
        for number in numbers:
            of_shard.setdefault(number * self.chunk[0] // self.shard, []).append(number)
        parts = each(self.folder, lambda row_group: self._chunks_of(row_group, of_shard[row_group]), of_shard)
        chunks = {number: chunk for part in parts for number, chunk in part.items()}
        yield from (chunks[number] for number in numbers)

    def _chunks_of(self, row_group: int, numbers: Sequence[int]) -> dict[int, NDArray[np.generic]]:
        """Chunks of one shard, by number."""
        shard = self.folder / "/".join(["c", str(row_group), *("0" for _ in self.chunk[1:])])
        chunks = {number: chunk for number in numbers if (chunk := self.cache.get((str(shard), number))) is not None}
        lost = [number for number in numbers if number not in chunks]
        if lost:
            try:
                fetched = self._fetch(shard, lost)
            except FileNotFoundError:
                fetched = dict.fromkeys(lost, self._unwritten())
            for number, chunk in fetched.items():
                self.cache.put((str(shard), number), chunk)
            chunks |= fetched
        return chunks

    def _fetch(self, shard: RemotePath, numbers: Sequence[int]) -> dict[int, NDArray[np.generic]]:
        index = self.cache.get(str(shard))
        if index is not None:
            try:
                return self._read_chunks(shard, index, numbers)
            except ValueError:  # the shard may have been replaced since its index was read
                pass
        count = self.shard // self.chunk[0]
        index = parse_index(shard.read_end(INDEX_ENTRY * count + 4), count)
        self.cache.put(str(shard), index)
        return self._read_chunks(shard, index, numbers)

    def _read_chunks(
        self, shard: RemotePath, index: NDArray[np.uint64], numbers: Sequence[int]
    ) -> dict[int, NDArray[np.generic]]:
        chunks = dict.fromkeys(numbers, self._unwritten())
        entries = {number: index[number % len(index)].tolist() for number in numbers}
        written = {number: entry for number, entry in entries.items() if entry != [MISSING, MISSING]}
        parts = shard.read_ranges([offset for offset, _ in written.values()], [n for _, n in written.values()])
        return chunks | {number: self._decode(checked(part)) for number, part in zip(written, parts, strict=True)}
