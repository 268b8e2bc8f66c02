"""Decodes the images that a look shows: a small picture of each, and the strips of its slider as far as they fit.

Images are decoded a few at a time, and kept as compressed pictures alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..analysis.quality import mean_squared_error, psnr
from ..encode.batch_coder import BatchDecoder
from ..encode.coder import LatentCoder
from ..encode.decode_by_groups import decode_by_groups
from ..encode.encoded_store import EncodedStore
from ..encode.latent_decoder import LatentDecoder
from ..model.batch_size import batch_size_of
from ..progress import Progress
from ..store.reader import Stored
from .look_pictures import strip, thumbnail
from .look_steps import GroupStep

STRIP_BYTES = 6_000_000
"""Characters of strips in a page, at most but for one batch: images beyond have none."""
FRAME_BYTES = 1 << 26  # pixels of a batch at all steps, at most


@dataclass(frozen=True, eq=False)
class ShownImage:
    """An image in the page."""

    thumbnail: str  # a data URI
    strip: str | None  # a data URI of the image at all steps, side by side; None if there was no room
    errors: tuple[float, ...]  # mean squared error of each step from the decoded image, in squared pixel levels


def shown_images(
    store: EncodedStore,
    decoder: LatentCoder | LatentDecoder,
    numbers: Sequence[int],
    steps: Sequence[GroupStep],
    batch_size: int | None,
    progress: Progress,
) -> dict[int, ShownImage]:
    """Decode the images `numbers` of `store`; strips are of the first ones.

    Without `steps` there are none. Raises `StoreError` if the store is damaged.
    """
    shown: dict[int, ShownImage] = {}
    size = _batch_size(store, decoder, steps, batch_size)
    batches, room = BatchDecoder(decoder, size), STRIP_BYTES
    for start in range(0, len(numbers), size):
        part = numbers[start : start + size]
        for number, image in zip(part, _decoded(store.gather(part), batches, steps if room > 0 else ()), strict=True):
            room -= len(image.strip or "")
            shown[number] = image
        progress(len(shown), len(numbers))
    return shown


def _batch_size(
    store: EncodedStore, decoder: LatentCoder | LatentDecoder, steps: Sequence[GroupStep], wanted: int | None
) -> int:
    fitting = FRAME_BYTES // (store.image_dims * max(len(steps), 1))
    return min(batch_size_of(decoder.model, wanted), max(fitting, 1))


def _decoded(stored: Stored, batches: BatchDecoder, steps: Sequence[GroupStep]) -> Iterator[ShownImage]:
    """Decode a batch; the last frame of a strip is the image as the store decodes, to the last bit."""
    pixels = batches.start(stored)()
    coder = batches.coder
    if not (steps and isinstance(coder, LatentCoder)):
        yield from (ShownImage(thumbnail(image), None, ()) for image in pixels)
        return
    frames = [*decode_by_groups(coder, stored, [step.end for step in steps[:-1]]), pixels]
    errors = [mean_squared_error(pixels, frame) for frame in frames]
    for place, image in enumerate(pixels):
        yield ShownImage(
            thumbnail(image), strip([frame[place] for frame in frames]), tuple(float(error[place]) for error in errors)
        )


def decibels(errors: Sequence[float] | NDArray[np.float64]) -> float | None:
    """PSNR in dB of images with these mean squared errors, together; None if they are equal."""
    return psnr(np.asarray(errors)) if np.any(errors) else None
