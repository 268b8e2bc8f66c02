"""What a task measures of row groups for the cutoff table: bounds of all images, and pictures of the first ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..encode.coder import LatentCoder
from ..model.bottom_up import first_images
from ..model.hvae import HVAE
from ..prune.mask import LatentMask
from ..prune.parts import Part, PartWork
from ..prune.sweep import ElboSweep
from ..store.quantiser import Codec
from .reconstruction import Compared, ReconstructionMeter, SizeMeter


class Measured(NamedTuple):
    """What was measured of a part."""

    terms: NDArray[np.float64]  # rate and distortion under each mask, bits/dim, [masks, 2, images]
    compared: Compared  # those that are also encoded and decoded


class TableWork(PartWork[tuple[ElboSweep, list[LatentCoder]], Measured]):
    """Measures images under all masks; encodes and decodes the first ones with those that have quantiser steps."""

    def __init__(
        self,
        model: HVAE,
        masks: Sequence[LatentMask],
        codecs: Sequence[Codec],
        steps: Sequence[Mapping[int, NDArray[np.float32]]],
        packing: str,
        dtypes: Sequence[Mapping[int, str]],
        pictures: int,
        shown: Sequence[int],
        seed: int,
        device: str | None = None,
    ) -> None:
        """`pictures` images are encoded and decoded, and those of the numbers `shown` are to look at.

        `codecs` and `steps` are of the first masks, one each. Bytes are those of stores of `packing` whose latents have
        `dtypes`, of each of these masks by resolution.
        """
        super().__init__(model, device)
        self.masks, self.codecs, self.steps = list(masks), list(codecs), list(steps)
        self.packing, self.dtypes = packing, list(dtypes)
        self.pictures, self.shown, self.seed = pictures, list(shown), seed

    def prepare(self, model: HVAE) -> tuple[ElboSweep, list[LatentCoder]]:
        """Make the coders, and take the masks to the model's device."""
        each = zip(self.masks, self.codecs, self.steps, strict=False)
        return ElboSweep(model, self.masks), [LatentCoder(model, *of_mask) for of_mask in each]

    def measure(self, tools: tuple[ElboSweep, list[LatentCoder]], part: Part) -> Measured:
        """Measure a part batch by batch; the bottom-up path runs once for all that is measured of a batch."""
        elbo, coders = tools
        seen = min(max(0, self.pictures - part.first), len(part))
        terms = np.zeros((len(self.masks), 2, len(part)))
        sizes = [SizeMeter(self.packing, dtypes) for dtypes in self.dtypes]
        with ReconstructionMeter(coders, seen, [number - part.first for number in self.shown], sizes) as meter:
            for numbers, batch in part.batches():
                images = torch.from_numpy(batch)
                activations, found = elbo(images, part.keys(numbers, self.seed))
                terms[:, :, numbers.start : numbers.stop] = found.cpu().numpy()
                if shown := len(numbers[: max(0, seen - numbers.start)]):
                    meter.add(first_images(activations, shown), images[:shown], numbers.start)
                part.report(numbers.stop)
            return Measured(terms, meter.compared())
