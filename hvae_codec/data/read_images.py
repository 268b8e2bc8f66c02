"""Images that were read already, to travel to a process that cannot read them: those of a Python data set."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..texts.classes import ClassTexts
from ..texts.packed import PackedTexts
from .arrays import SAMPLED_IMAGES
from .containers import Container
from .heads import ImageHead, head_of_pixels


class ReadImages(Container):
    """A portion whose pixels are in memory; an image that could not be read is an error when it is asked for."""

    pixels: NDArray[np.uint8]  # [N, channels, size, size]
    problems: dict[int, str]  # position to what is wrong with the image

    @classmethod
    def of(cls, whole: Container, positions: NDArray[np.int64]) -> ReadImages:
        """Read the images of `whole` at `positions`, one by one, as one that cannot be read hides no other."""
        pixels = np.zeros((len(positions), whole.channels, whole.size, whole.size), np.uint8)
        problems = {}
        for i in range(len(positions)):
            try:
                pixels[i] = whole.read(positions[i : i + 1])[0]
            except DataError as error:
                problems[i] = str(error)
        names, labels = PackedTexts.of(whole.names.take(positions)), ClassTexts.of([*whole.labels.take(positions)])
        numbers, sizes = whole.numbers_of(positions), whole.file_bytes[positions]
        read = cls(whole.path, names, labels, sizes, whole.size, whole.channels, numbers=numbers)
        read.preprocessing, read.seen = whole.preprocessing, whole.seen.of(positions)
        read.pixels, read.problems = pixels, problems
        return read

    def _narrow(self, positions: NDArray[np.int64]) -> None:
        super()._narrow(positions)
        self.pixels = self.pixels[positions]
        self.problems = {i: self.problems[p] for i, p in enumerate(positions.tolist()) if p in self.problems}

    def read(self, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Give the pixels; raises `DataError` if an image could not be read."""
        for position in positions.tolist():
            self._raise_problem(position)
        return self.pixels[positions]

    def checksum(self, position: int) -> int:
        """Look it up, as it was when the image was read; raises `DataError` if it was not."""
        if not self.seen.is_checked[position]:
            self._raise_problem(position)
        return int(self.seen.checksums[position])

    def head(self, position: int) -> ImageHead:
        """Describe the pixels that were read; raises `DataError` if the image could not be."""
        self._raise_problem(position)
        return head_of_pixels((self.size, self.size, self.channels), np.uint8)

    def content(self, positions: NDArray[np.int64]) -> bytes:
        """Give the pixels of up to 64 images."""
        sample = np.unique(np.linspace(0, len(positions) - 1, SAMPLED_IMAGES).astype(int))
        return self.read(positions[sample]).tobytes()

    def _raise_problem(self, position: int) -> None:
        if position in self.problems:
            raise DataError(self.problems[position])
