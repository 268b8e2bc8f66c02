"""The keys that each image's noise depends on."""

from __future__ import annotations

from ..data.sources import ImageSource


def image_keys(source: ImageSource, rows: slice, seed: int) -> list[tuple[int, int]]:
    """Make a key for the noise of each of the images `rows`: the seed and the image's index in its file or folder.

    So an image has the same noise in every subset, order and batch, and on every process.
    """
    return [(seed, position) for position in source.positions[rows].tolist()]
