"""Measures what pruning costs: NELBO, distortion and rate under several masks, on the same images and noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.sources import Images, ImageSource, as_source
from ..distributed import DistributedContext
from ..errors import DataError
from ..model.bottom_up import Activations
from ..model.choices import kept_of
from ..model.hvae import HVAE
from ..model.keyed_noise import keyed_noise
from ..model.precision import full_float32
from ..progress import Progress
from .mask import LatentMask
from .rank_batches import image_keys, rank_batches
from .shared_prefix import masked_outputs


@dataclass(frozen=True)
class SweepRow:
    """One mask's rate and distortion of every image, float64 [N], in bits/dim; all rows share images and noise."""

    mask: LatentMask
    rate: NDArray[np.float64]
    distortion: NDArray[np.float64]

    @property
    def nelbo(self) -> NDArray[np.float64]:
        """rate + distortion, [N]; pruned dimensions are prior samples and count no KL."""
        return self.rate + self.distortion

    def change_from(self, other: SweepRow) -> tuple[float, float]:
        """Return the mean paired difference of this NELBO from another row's, and its standard error."""
        change = self.nelbo - other.nelbo
        return float(change.mean()), standard_error(change)


def standard_error(values: NDArray[np.float64]) -> float:
    """Return the standard error of the mean, std / sqrt(N); NaN of one value."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


@torch.no_grad()
@full_float32()
def sweep(
    model: HVAE,
    images: Images,
    masks: Sequence[LatentMask],
    *,
    batch_size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
    processes: DistributedContext | None = None,
) -> list[SweepRow]:
    """Measure rate and distortion of `images` (a source, or uint8 [N, C, H, W]) under each of `masks`, in their order.

    The bottom-up path runs once a batch, and all masks see the same noise, so differences between rows are paired.
    Raises `DataError` if there are no images, they do not fit the model or its output is not finite, `UsageError`
    on another model's mask.
    """
    source = as_source(images)
    elbo = ElboSweep(model, masks, source, seed)
    for first, batch in rank_batches(source, batch_size, batch_size, progress, processes):
        pixels = torch.from_numpy(batch)
        elbo.add(model.activations(pixels), pixels, first)
    return elbo.rows(processes)


class ElboSweep:
    """Collects rate and distortion of images under several masks, batch by batch."""

    def __init__(self, model: HVAE, masks: Sequence[LatentMask], source: ImageSource, seed: int) -> None:
        if not len(source):
            raise DataError("there are no images to measure the NELBO on; give at least one")
        for mask in masks:
            mask.check_fits(model)
        self.model, self.masks, self._source, self._seed = model, masks, source, seed
        self._kept = [kept_of(mask.tensors(model.device)) for mask in masks]
        self._terms = np.zeros((len(masks), 2, len(source)))

    @torch.no_grad()
    @full_float32()
    def add(self, activations: Activations, images: Tensor, first: int) -> None:
        """Measure uint8 `images` [B, C, H, W], the first of which is number `first`, from their activations."""
        rows = slice(first, first + len(images))
        noise = keyed_noise(self.model.config, image_keys(self._source, rows, self._seed), self.model.device)
        images = images.to(self.model.device)
        choices = [self.model.choose_posterior(noise, kept) for kept in self._kept]
        outputs = masked_outputs(self.model, activations, self.masks, choices)
        for terms, choose, output in zip(self._terms, choices, outputs, strict=True):
            both = torch.stack([choose.kl.sum(dim=0), self.model.likelihood.nll(output, images)])
            terms[:, rows] = both.double().cpu().numpy() / self.model.nats_per_bit_dim

    def rows(self, processes: DistributedContext | None = None) -> list[SweepRow]:
        """Return a row per mask, of the images of all processes; `DataError` if a number is not finite."""
        terms = (processes or DistributedContext()).all_reduce_sum(torch.from_numpy(self._terms)).numpy()
        if not np.isfinite(terms).all():
            raise DataError("the NELBO is not finite; the model's weights are damaged")
        return [SweepRow(mask, *both) for mask, both in zip(self.masks, terms, strict=True)]
