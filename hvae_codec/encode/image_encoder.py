"""Images of a source to stored numbers, and to what is measured of them, batch by batch.

Encode, append and repair all do it here, so that the same images in the same batches give the same bytes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.sources import ImageSource
from ..model.precision import full_float32
from ..prune.sweep import ElboSweep
from ..store.reader import Stored
from ..store.sketch import SKETCH, sketch
from .coder import LatentCoder
from .deep_verify import decode_batch_checked

Key = TypeVar("Key")

PerImage = dict[str, NDArray[np.floating]]
"""Name of a per-image array to its numbers, [B]."""


@dataclass(frozen=True)
class ImageEncoder:
    """Encodes images of a source."""

    coder: LatentCoder
    source: ImageSource
    batch_size: int
    """Images through the model at once."""
    evaluate: bool = False
    """Whether each image's rate and distortion, bits/dim, are measured."""
    seed: int = 0
    """Of the noise that these are measured with."""
    verify: bool = False
    """Whether a sketch is made of each image as it decodes."""

    def encode_range(self, rows: range) -> tuple[Stored, PerImage]:
        """Stored numbers of the source's images `rows`, and what is measured of them."""
        with closing(self.batches(rows)) as batches:
            return joined(batches)

    def batches(self, rows: range) -> Generator[tuple[Stored, PerImage]]:
        """The same batch by batch; files are decoded ahead."""
        first = rows.start
        with closing(self.source.batches(self.batch_size, start=rows.start, stop=rows.stop)) as batches:
            for pixels in batches:
                yield self._batch(first, pixels)
                first += len(pixels)

    @torch.no_grad()
    @full_float32()
    def _batch(self, first: int, pixels: NDArray[np.uint8]) -> tuple[Stored, PerImage]:
        model, images = self.coder.model, torch.from_numpy(pixels)
        activations = model.activations(images)
        stored = self.coder.encode_activations(activations)
        per_image: PerImage = {}
        if self.evaluate:
            own = self.source.subset(range(first, first + len(images)))
            bounds = ElboSweep(model, [self.coder.mask], own, self.seed)
            bounds.add(activations, images, 0)
            (measured,) = bounds.rows()
            per_image = {"rate": measured.rate, "distortion": measured.distortion}
        if self.verify:
            per_image[SKETCH] = sketch(decode_batch_checked(self.coder, stored))
        return stored, per_image


def joined(parts: Iterable[tuple[Stored, PerImage]]) -> tuple[Stored, PerImage]:
    """What was given for several batches, as one."""
    stored, per_image = zip(*parts, strict=True)
    return _concatenated(stored), _concatenated(per_image)


def _concatenated(parts: Sequence[dict[Key, NDArray]]) -> dict[Key, NDArray]:
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
