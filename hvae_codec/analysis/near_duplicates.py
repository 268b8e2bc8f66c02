"""Images of a store whose kept latents are nearest to each other; takes neither the model nor the originals.

    stored numbers of n images ── float32 [n, kept dims] ── each row's nearest other row ──> pairs, nearest first

The distance is the root mean square, over all kept latent dimensions, of the difference of the stored numbers: in
quantiser steps if these are codes. 0 means the same codes, and thus the same decoded image; 1 that they are a step
apart, by and large. Of latents that are stored as floats it is in units of z.

All pairs are compared, a block of rows at a time. Larger stores are compared in a sample, so that memory stays flat.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..encode.packing import Packing
from ..errors import UsageError
from ..progress import Stage
from ..store.reader import Store

HELD_BYTES = 1 << 29
"""Bytes of numbers that are compared, at most: of 1,523 kept dimensions, those of 88,000 images."""
BLOCK = 256  # images that are read, or compared with all, at once


@dataclass(frozen=True)
class Pair:
    """Two images of a store, by number, and their distance."""

    first: int
    second: int
    distance: float


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest other image of each image that was compared."""

    images: NDArray[np.int64]  # [n], numbers of those that were compared, ascending
    nearest: NDArray[np.int64]  # [n], the number of each one's nearest among them
    distances: NDArray[np.float64]  # [n]
    equal: NDArray[np.int64]  # [n], of each one the first of those that have its latents, which may be itself

    def pairs(self) -> list[Pair]:
        """Each two images of which one is the other's nearest, once, nearest first."""
        both = np.sort(np.stack([self.images, self.nearest]), axis=0)
        (low, high), chosen = np.unique(both, axis=1, return_index=True)
        far = self.distances[chosen]
        order = np.lexsort((high, low, far))
        found = (numbers[order].tolist() for numbers in (low, high, far))
        return [Pair(*pair) for pair in zip(*found, strict=True)]

    def separate_pairs(self, count: int) -> list[Pair]:
        """Choose `count` of `pairs`, nearest first, so that no image is in two, and alike ones leave room."""
        taken: set[int] = set()
        chosen: list[Pair] = []
        for pair in self.pairs():
            if len(chosen) < count and not taken & {pair.first, pair.second}:
                taken |= {pair.first, pair.second}
                chosen.append(pair)
        return chosen

    @property
    def same(self) -> int:
        """Images that have all kept latents in common with another one."""
        return int((self.distances == 0).sum())

    def same_across(self, splits: Sequence[str]) -> int:
        """Count the images that have all kept latents in common with one of another split; "" is no split."""
        members: dict[int, list[str]] = {}
        for image, first in zip(self.images.tolist(), self.equal.tolist(), strict=True):
            if split := splits[image]:
                members.setdefault(first, []).append(split)
        return sum(len(found) for found in members.values() if len(set(found)) > 1)


def sample_images(store: Store, count: int, seed: int) -> NDArray[np.int64]:
    """Draw the images to compare, int64 [n], ascending: all if these are at most `count` and take `HELD_BYTES`."""
    fitting = max(2, HELD_BYTES // (4 * store.kept_dims))
    if len(store) <= min(count, fitting):
        return np.arange(len(store))
    drawn = np.random.default_rng(seed).choice(len(store), min(count, fitting), replace=False)
    return np.sort(drawn).astype(np.int64)


def nearest_neighbours(store: Store, images: Sequence[int] | NDArray[np.int64], stage: Stage) -> Neighbours:
    """Find the nearest of `images` to each of them, exactly.

    Raises `UsageError` if there are fewer than two, `StoreError` if the store is damaged.
    """
    if len(images) < 2:
        raise UsageError(f"there is {len(images)} image to compare; give two at least")
    numbers, rows = np.asarray(images, np.int64), _numbers(store, images, stage)
    places = _nearest_rows(rows, stage)
    distances = [_distances(rows[part], rows[places[part]]) for part in _blocks(len(rows))]
    far = np.concatenate(distances)
    return Neighbours(numbers, numbers[places], far, numbers[_first_equal(rows, far == 0)])


def _numbers(store: Store, images: Sequence[int] | NDArray[np.int64], stage: Stage) -> NDArray[np.float32]:
    """Read the stored numbers of `images`, [n, kept dims]."""
    packing, progress = Packing(store.columns), stage("Reading latents")
    rows = np.empty((len(images), store.kept_dims), np.float32)
    for part in _blocks(len(images)):
        rows[part] = packing.pack(store.gather([int(image) for image in images[part]]))
        progress(min(part.stop, len(images)), len(images))
    return rows


def _nearest_rows(rows: NDArray[np.float32], stage: Stage) -> NDArray[np.int64]:
    """Find the number of the other row that is nearest to each."""
    from sklearn.neighbors import NearestNeighbors

    search, progress = NearestNeighbors(n_neighbors=2, algorithm="brute").fit(rows), stage("Comparing latents")
    nearest = np.empty(len(rows), np.int64)
    for part in _blocks(len(rows)):
        found = search.kneighbors(rows[part], return_distance=False)
        own = np.arange(part.start, part.start + len(found))
        nearest[part] = np.where(found[:, 0] == own, found[:, 1], found[:, 0])  # of equal rows, any may come first
        progress(part.start + len(found), len(rows))
    return nearest


def _first_equal(rows: NDArray[np.float32], same: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Find the first row that is equal to each; `same` are those that another is equal to.

    By nearest rows alone, four equal ones may be two pairs that have nothing to do with each other.
    """
    places, first = np.arange(len(rows)), dict[bytes, int]()
    for place in np.flatnonzero(same).tolist():
        digest = hashlib.blake2b((rows[place] + 0.0).tobytes()).digest()  # -0.0 is 0.0
        places[place] = first.setdefault(digest, place)
    return places


def _distances(rows: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.sqrt(np.square(rows.astype(np.float64) - others).mean(axis=1))


def _blocks(count: int) -> list[slice]:
    return [slice(start, start + BLOCK) for start in range(0, count, BLOCK)]
