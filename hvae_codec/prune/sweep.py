"""What pruning costs: NELBO, distortion and rate of one model under several masks, on the same images and noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError
from ..images import ImageSource, as_source
from ..model.hvae import HVAE, Elbo, SampledPosterior, normal_like
from ..model.precision import full_float32
from ..model.top_down import LatentGroup
from .kl_stats import Progress
from .mask import LatentMask


@dataclass(frozen=True)
class SweepRow:
    """One mask's rate and distortion of every image, float64 [N], in bits/dim; a row's images and noise are all's."""

    mask: LatentMask
    rate: NDArray[np.float64]
    distortion: NDArray[np.float64]

    @property
    def nelbo(self) -> NDArray[np.float64]:
        """rate + distortion, [N]; pruned dimensions are prior samples and count no KL."""
        return self.rate + self.distortion

    def change_from(self, other: SweepRow) -> tuple[float, float]:
        """Mean paired difference of this NELBO from another row's and its standard error (NaN of one image)."""
        change = self.nelbo - other.nelbo
        error = change.std(ddof=1) / math.sqrt(len(change)) if len(change) > 1 else math.nan
        return float(change.mean()), float(error)


def sweep(
    model: HVAE,
    images: ImageSource | NDArray[np.uint8] | Tensor,
    masks: Sequence[LatentMask],
    *,
    batch_size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[SweepRow]:
    """Rate and distortion of `images` (a source, or uint8 [N, C, H, W]) under each of `masks`, in their order.

    The bottom-up path runs once a batch, and all masks see the same noise, so differences between rows are paired.
    Raises `DataError` where there are no images or they do not fit the model, `UsageError` on another model's mask.
    """
    source = as_source(images)
    if not len(source):
        raise DataError("there are no images to measure the NELBO on; give at least one")
    for mask in masks:
        mask.check_fits(model)
    generator = torch.Generator(model.device).manual_seed(seed)
    parts: list[list[Elbo]] = [[] for _ in masks]
    done = 0
    for batch in source.batches(batch_size):
        for part, elbo in zip(parts, _elbos(model, torch.from_numpy(batch), masks, generator), strict=True):
            part.append(elbo)
        done += len(batch)
        if progress is not None:
            progress(done, len(source))
    return [_row(mask, part) for mask, part in zip(masks, parts, strict=True)]


@torch.no_grad()
@full_float32()
def _elbos(model: HVAE, images: Tensor, masks: Sequence[LatentMask], generator: torch.Generator) -> list[Elbo]:
    activations = model.activations(images)
    images = images.to(model.device)
    noise = _SharedNoise(generator)
    elbos = []
    for mask in masks:
        choose = SampledPosterior(noise, mask.tensors(model.device))
        output = model.top_down(activations, choose, len(images))
        rate = torch.stack(choose.kl).sum(dim=0) / model.nats_per_bit_dim
        elbos.append(Elbo(rate, model.likelihood.nll(output, images) / model.nats_per_bit_dim))
    return elbos


class _SharedNoise:
    """The same noise for a group however often it is asked for, so that masks are compared on equal terms."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.drawn: dict[int, Tensor] = {}

    def __call__(self, group: LatentGroup) -> Tensor:
        if group.index not in self.drawn:
            self.drawn[group.index] = normal_like(group.prior.mean, self.generator)
        return self.drawn[group.index]


def _row(mask: LatentMask, parts: Sequence[Elbo]) -> SweepRow:
    rate, distortion = (torch.cat([getattr(p, name) for p in parts]) for name in ("rate", "distortion"))
    return SweepRow(mask, rate.double().cpu().numpy(), distortion.double().cpu().numpy())
