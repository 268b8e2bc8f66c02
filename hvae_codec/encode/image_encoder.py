"""Images of a source to stored numbers, batch by batch, with what is measured of each.

source ─ read ahead ─> batches ─ coder ─> stored numbers, rate, distortion, sketch, checksum
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..data.sources import ImageSource
from ..model.arriving import Arriving
from ..model.keyed_noise import keyed_noise
from ..prune.image_keys import image_keys
from ..prune.sweep import finite_terms
from ..store.arrays import chunk_length
from ..store.reader import Stored
from ..store.schema import CHECKSUM
from .batch_coder import BatchCoder, EncodedBatch
from .coder import LatentCoder
from .sketch import SKETCH, sketch

PerImage = dict[str, NDArray[np.number]]
"""Name of a per-image array to its numbers, [B]."""
EVALUATED = ("distortion", "rate")  # per-image arrays of bits/dim


@dataclass(frozen=True)
class ImageEncoder:
    """Encodes images of a source, in batches that row groups are whole numbers of."""

    batch_coder: BatchCoder
    source: ImageSource
    evaluate: bool = False  # whether each image's rate and distortion, bits/dim, are measured
    seed: int = 0  # of the noise that these are measured with
    verify: bool = False  # whether a sketch is made of each image as it decodes, and what is written is read back
    checksums: bool = True  # whether the CRC-32 of each image's bytes goes with it, as stores of version 4 have it

    @classmethod
    def of(
        cls, coder: LatentCoder, source: ImageSource, row_group_size: int, max_batch: int, **measured: Any
    ) -> ImageEncoder:
        """Encode with `coder`, at most `max_batch` images at once; `measured` are the other fields."""
        return cls(BatchCoder(coder, chunk_length(row_group_size, max_batch, 1)), source, **measured)

    @property
    def coder(self) -> LatentCoder:
        """What encodes."""
        return self.batch_coder.coder

    @property
    def batch_size(self) -> int:
        """Images through the model at once."""
        return self.batch_coder.size

    @property
    def per_image(self) -> tuple[str, ...]:
        """The per-image arrays that are measured of the pixels."""
        return (*(EVALUATED if self.evaluate else ()), *((SKETCH,) if self.verify else ()))

    def encode_range(self, rows: range) -> tuple[Stored, PerImage]:
        """Stored numbers of the source's images `rows`, and what is measured of them."""
        return joined(self.batches(rows))

    def batches(self, rows: range) -> Generator[tuple[Stored, PerImage]]:
        """The same batch by batch; files are decoded ahead."""
        with closing(self.source.batches(self.batch_size, start=rows.start, stop=rows.stop)) as batches:
            numbered = zip(rows[:: self.batch_size], batches, strict=True)
            yield from self.batch_coder.fetched(itertools.starmap(self._start, numbered))

    def _start(self, first: int, pixels: NDArray[np.uint8]) -> Callable[[], tuple[Stored, PerImage]]:
        """Start to encode and to measure a batch; the function returned waits for that."""
        batch = self.batch_coder.start_encoding(pixels)
        count, stored_of = len(pixels), batch.stored  # not the batch: its activations are large
        terms = Arriving(self._terms(batch, first, count)) if self.evaluate else None
        checksums = self.source.checksums(range(first, first + count)) if self.checksums else None

        def fetch() -> tuple[Stored, PerImage]:
            stored, per_image = stored_of(), PerImage()
            if terms is not None:
                (measured,) = finite_terms(terms.numpy()[:, :, :count])
                per_image = dict(zip(("rate", "distortion"), measured, strict=True))
            if self.verify:
                per_image[SKETCH] = sketch(self.batch_coder.decode_checked(stored))
            if checksums is not None:
                per_image[CHECKSUM] = checksums
            return stored, per_image

        return fetch

    def _terms(self, batch: EncodedBatch, first: int, count: int) -> Tensor:
        """Compute rate and distortion, bits/dim, of `count` images from number `first` on: [1, 2, size]."""
        keys = image_keys(self.source, slice(first, first + count), self.seed)
        keys += keys[-1:] * (len(batch.images) - len(keys))
        noise = keyed_noise(self.coder.model.config, keys, self.coder.model.device)
        return self.batch_coder.elbo(batch.activations, batch.images, noise)


def joined(parts: Iterable[tuple[Stored, PerImage]]) -> tuple[Stored, PerImage]:
    """What was given for several batches, as one."""
    stored, per_image = (
        {key: np.concatenate([part[key] for part in dicts]) for key in dicts[0]} for dicts in zip(*parts, strict=True)
    )
    return stored, per_image
