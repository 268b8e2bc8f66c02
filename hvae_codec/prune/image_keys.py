"""The keys that each image's noise depends on."""

from __future__ import annotations

from ..data.sources import ImageSource


def image_keys(source: ImageSource, rows: slice, seed: int) -> list[tuple[int, int]]:
    """Make a key for the noise of each of the images `rows`: the seed and the image's number in its file or folder.

    So an image has the same noise in every subset, portion, order and batch, and on every process.
    """
    return [(seed, number) for number in source.numbers[rows].tolist()]
