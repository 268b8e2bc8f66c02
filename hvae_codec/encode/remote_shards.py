"""Chunks of a latent array in a bucket: many at once, the index of a shard once, decoded ones kept.

    first image of a shard     last bytes of the object (the index), then the bytes of one chunk
    another one                the bytes of its chunk, or nothing where it is still there

A request takes some ten milliseconds however little it brings; zarr would make two for each chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import zarr
from numpy.typing import NDArray

from .places import Place
from .remote import AT_ONCE, RemotePath
from .shards import INDEX_ENTRY, MISSING, ChunkCache, ShardedArray, checked, parse_index


def sharded_array(array: zarr.Array, place: Place, cache: ChunkCache) -> ShardedArray | None:
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

    def _chunks(self, numbers: Sequence[int]) -> Iterator[NDArray[np.generic]]:
        if len(numbers) < 2:
            yield from map(self._chunk, numbers)
            return
        with ThreadPoolExecutor(AT_ONCE) as pool:
            yield from pool.map(self._chunk, numbers)

    def _chunk(self, number: int) -> NDArray[np.generic]:
        row_group, place = divmod(number * self.chunk[0], self.shard)
        shard = self.folder / "/".join(["c", str(row_group), *("0" for _ in self.chunk[1:])])
        key = (str(shard), place)
        chunk = self.cache.get(key)
        if chunk is None:
            try:
                chunk = self._fetch(shard, place // self.chunk[0])
            except FileNotFoundError:
                return self._unwritten()
            self.cache.put(key, chunk)
        return chunk

    def _fetch(self, shard: RemotePath, place: int) -> NDArray[np.generic]:
        index = self.cache.get(str(shard))
        if index is not None:
            try:
                return self._read_chunk(shard, index[place])
            except ValueError:  # the shard may have been replaced since its index was read
                pass
        content = shard.read_end(INDEX_ENTRY * (self.shard // self.chunk[0]) + 4)
        index = parse_index(content, self.shard // self.chunk[0])
        self.cache.put(str(shard), index)
        return self._read_chunk(shard, index[place])

    def _read_chunk(self, shard: RemotePath, entry: NDArray[np.uint64]) -> NDArray[np.generic]:
        offset, length = map(int, entry)
        if offset == length == MISSING:
            return self._unwritten()
        return self._decode(checked(shard.read_range(offset, length)))
