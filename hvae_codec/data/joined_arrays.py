"""Images in several arrays that belong together, each for training, validation or testing: batches, keys of an archive.

data_batch_1 ... data_batch_5, test_batch ──> test/00000000, ..., train/00000000, ...
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..texts.classes import ClassTexts
from ..texts.numbered import NumberedTexts
from ..texts.sequence import JoinedTexts
from .arrays import ArrayContainer
from .chosen_images import ChosenImages, portion_of
from .splits import PARTS, Part, StatedParts


@dataclass(frozen=True, eq=False)
class ArrayPart:
    """Images in one array, what they are for, and their classes."""

    part: Part
    source: str  # the file or the key that says so
    images: Any  # uint8 [n, H, W] or [n, H, W, C], of which slices are read
    labels: Sequence[str] = ()  # one per image, or none


class Planes:
    """Rows of pixels, a channel after the other, as images; `skip` bytes before each are something else."""

    def __init__(self, rows: NDArray[Any], channels: int = 3, skip: int = 0) -> None:
        """`rows` are [n, skip + channels * H * W], H = W; raises `DataError` if they are of another length."""
        side = round(max(rows.shape[1] - skip, 0) ** 0.5 / channels**0.5)
        if side < 1 or channels * side**2 + skip != rows.shape[1]:
            raise DataError(f"rows of {rows.shape[1] - skip} values are no square images of {channels} channels")
        self._rows, self._skip = rows, skip
        self.dtype = rows.dtype
        self.shape = (int(rows.shape[0]), side, side, channels)

    def __getitem__(self, images: slice) -> NDArray[Any]:
        """Read images, [stop - start, H, W, C]."""
        _, height, width, channels = self.shape
        planes = np.asarray(self._rows[images][:, self._skip :]).reshape(-1, channels, height, width)
        return planes.transpose(0, 2, 3, 1)

    def portion(self, positions: NDArray[np.int64]) -> Planes:
        """Choose images."""
        return Planes(portion_of(self._rows, positions), self.shape[3], self._skip)


class JoinedArrays:
    """Arrays of images, one after the other, as one of which slices are read."""

    def __init__(self, arrays: Sequence[Any]) -> None:
        self._arrays = arrays
        self._starts = np.cumsum([0, *(array.shape[0] for array in arrays)])
        self.dtype = arrays[0].dtype
        self.shape = (int(self._starts[-1]), *arrays[0].shape[1:])

    def __getitem__(self, images: slice) -> NDArray[np.uint8]:
        """Read images, [stop - start, ...]."""
        pieces = [
            array[max(images.start - first, 0) : images.stop - first]
            for array, (first, last) in zip(self._arrays, pairwise(self._starts.tolist()), strict=True)
            if images.start < last and images.stop > first
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def portion(self, positions: NDArray[np.int64]) -> ChosenImages:
        """Choose images, from those arrays alone that have some of them."""
        array_of = np.searchsorted(self._starts, positions, side="right") - 1
        pieces = [
            portion_of(self._arrays[array], positions[array_of == array] - self._starts[array])
            for array in np.unique(array_of).tolist()
        ]
        return ChosenImages(JoinedArrays(pieces), np.argsort(np.argsort(array_of, kind="stable")))


class JoinedContainer(ArrayContainer):
    """Images of several arrays; a name is what the image is for, and its number among those."""

    numbered_names = False


def open_parts(path: Path, parts: Sequence[ArrayPart], *, size: int, channels: int) -> JoinedContainer:
    """Join arrays, those for the same in the given order; raises `DataError` if they do not fit each other."""
    ordered = sorted(parts, key=lambda part: part.part)  # names are sorted
    _check_alike(path, ordered)
    counts = [len_of(part.images) for part in ordered]
    numbers = np.repeat(np.array([PARTS.index(part.part) for part in ordered], np.int8), counts)
    sources = {kind: [part.source for part in ordered if part.part == kind] for kind in PARTS}
    return JoinedContainer(
        path,
        JoinedArrays([part.images for part in ordered]),
        ClassTexts.joined([_labels(part) for part in ordered]),
        JoinedTexts([*_names(ordered)]),
        StatedParts(numbers, sources),
        size=size,
        channels=channels,
    )


def len_of(images: Any) -> int:
    """Count the images in an array."""
    return int(images.shape[0])


def _labels(part: ArrayPart) -> ClassTexts:
    return ClassTexts.of(part.labels) if part.labels else ClassTexts.same("", len_of(part.images))


def _names(parts: Sequence[ArrayPart]) -> Iterator[NumberedTexts]:
    done = dict.fromkeys(PARTS, 0)
    for part in parts:
        first = done[part.part]
        done[part.part] += len_of(part.images)
        yield NumberedTexts(f"{part.part}/", len_of(part.images), first)


def _check_alike(path: Path, parts: Sequence[ArrayPart]) -> None:
    first = parts[0]
    for part in parts:
        images, labels = part.images, part.labels
        if len(images.shape) < 3:
            raise DataError(f"{part.source} in {path} has shape {tuple(images.shape)}, not [N, H, W] or [N, H, W, C]")
        if images.dtype != first.images.dtype or images.shape[1:] != first.images.shape[1:]:
            one, other = (f"{p.source} has {p.images.dtype} {list(p.images.shape)}" for p in (first, part))
            raise DataError(f"images in {path} are not alike: {one}, {other}; give one of them by itself")
        if labels and len(labels) != len_of(images):
            counts = f"{len_of(images):,} images but {len(labels):,} labels"
            raise DataError(f"{part.source} in {path} has {counts}; give one label per image")
