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
from ..model.batch_size import batch_size_of
from ..model.bottom_up import Activations
from ..model.choices import Noise, kept_of
from ..model.hvae import HVAE
from ..model.keyed_noise import keyed_rows, noise_of
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
    batch_size: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    processes: DistributedContext | None = None,
) -> list[SweepRow]:
    """Measure rate and distortion of `images` (a source, or uint8 [N, C, H, W]) under each of `masks`, in their order.

    The bottom-up path runs once a batch, and all masks see the same noise, so differences between rows are paired.
    Raises `DataError` if there are no images, they do not fit the model or its output is not finite, `UsageError`
    on another model's mask.
    """
    source, size = as_source(images), batch_size_of(model, batch_size)
    elbo = ElboSweep(model, masks, source, seed)
    for first, batch in rank_batches(source, size, size, progress, processes):
        elbo.add(torch.from_numpy(batch), first)
    return elbo.rows(processes)


class MaskedElbo:
    """Computes rate and distortion of batches under several masks, on the model's device."""

    def __init__(self, model: HVAE, masks: Sequence[LatentMask]) -> None:
        for mask in masks:
            mask.check_fits(model)
        self.model, self.masks = model, masks
        self._kept = [kept_of(mask.tensors("cpu"), model.device) for mask in masks]

    @torch.no_grad()
    @full_float32()
    def __call__(self, activations: Activations, images: Tensor, noise: Noise) -> Tensor:
        """Measure uint8 `images` [B, C, H, W] from their activations: [masks, 2, B] bits/dim, float64."""
        choices = [self.model.choose_posterior(noise, kept) for kept in self._kept]
        outputs = masked_outputs(self.model, activations, self.masks, choices)
        terms = torch.empty(len(choices), 2, len(images), dtype=torch.float64, device=self.model.device)
        for (rate, distortion), choose, output in zip(terms, choices, outputs, strict=True):
            rate.copy_(choose.kl.sum(dim=0))
            distortion.copy_(self.model.likelihood.nll(output, images))
        return terms / self.model.nats_per_bit_dim


def finite_terms(terms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what `MaskedElbo` computed; `DataError` if a number is not finite."""
    if not np.isfinite(terms).all():
        raise DataError("the NELBO is not finite; the model's weights are damaged")
    return terms


class ElboSweep:
    """Collects rate and distortion of images under several masks, batch by batch."""

    def __init__(self, model: HVAE, masks: Sequence[LatentMask], source: ImageSource, seed: int) -> None:
        if not len(source):
            raise DataError("there are no images to measure the NELBO on; give at least one")
        self.model, self.masks, self._source, self._seed = model, masks, source, seed
        self._elbo = MaskedElbo(model, masks)
        self._measure = model.recording.of(self._batch, model.device)
        self._terms = np.zeros((len(masks), 2, len(source)))

    def add(self, images: Tensor, first: int) -> Activations:
        """Measure uint8 `images` [B, C, H, W], the first of which is number `first`.

        Returns their activations, which hold until the next call.
        """
        rows = slice(first, first + len(images))
        drawn = keyed_rows(self.model.config, image_keys(self._source, rows, self._seed), self.model.device)
        activations, terms = self._measure(images, drawn)
        self._terms[:, :, rows] = terms.cpu().numpy()
        return activations

    @torch.no_grad()
    def _batch(self, images: Tensor, drawn: Tensor) -> tuple[Activations, Tensor]:
        activations = self.model.activations(images)
        return activations, self._elbo(activations, images, noise_of(self.model.config, drawn))

    def rows(self, processes: DistributedContext | None = None) -> list[SweepRow]:
        """Return a row per mask, of the images of all processes; `DataError` if a number is not finite."""
        terms = (processes or DistributedContext()).all_reduce_sum(torch.from_numpy(self._terms)).numpy()
        return [SweepRow(mask, *both) for mask, both in zip(self.masks, finite_terms(terms), strict=True)]
