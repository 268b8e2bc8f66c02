"""Measures what pruning costs: NELBO, distortion and rate under several masks, on the same images and noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.sources import Images, ImageSource, as_source
from ..engine.engine import Engine
from ..engine.given import Executors, given_engine
from ..engine.tally import Tally
from ..errors import DataError
from ..model.batch_size import batch_size_of
from ..model.bottom_up import Activations
from ..model.choices import Noise, kept_of
from ..model.hvae import HVAE
from ..model.keyed_noise import keyed_rows, noise_of
from ..model.precision import full_float32
from ..progress import Progress
from .mask import LatentMask
from .parts import Cut, Part, PartWork, measured_parts
from .shared_prefix import masked_outputs


@dataclass(frozen=True)
class SweepRow:
    """One mask's rate and distortion of every image, float64 [N], in bits/dim; all rows share images and noise."""

    mask: LatentMask  # what was kept
    rate: NDArray[np.float64]  # KL of what was kept, [N], bits/dim
    distortion: NDArray[np.float64]  # -log2 p(x | z), [N], bits/dim

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


def sweep(
    model: HVAE,
    images: Images,
    masks: Sequence[LatentMask],
    *,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    engine: Engine | None = None,
    executor: Executors | None = None,
    device: str | None = None,
    tally: Tally | None = None,
) -> list[SweepRow]:
    """Measure rate and distortion of `images` (a source, or uint8 [N, C, H, W]) under each of `masks`, in their order.

    The bottom-up path runs once a batch, and all masks see the same noise, so differences between rows are paired.
    Batches are tasks of `engine`, or of an `executor`, as in `kl_stats`. Raises `DataError` if there are no images,
    they do not fit the model or its output is not finite, `UsageError` on another model's mask, and errors of engines.
    """
    source = as_source(images)
    check_measurable(model, masks, source)
    work, cut = SweepWork(model, masks, seed, device), Cut.of(batch_size_of(model, batch_size, device))
    with given_engine(engine, executor) as used:
        terms = list(measured_parts(used, work, source, cut, progress, tally))
    return sweep_rows(masks, np.concatenate(terms, axis=2))


def check_measurable(model: HVAE, masks: Sequence[LatentMask], source: ImageSource) -> None:
    """Raise `DataError` if there are no images, `UsageError` if a mask is another model's."""
    if not len(source):
        raise DataError("there are no images to measure the NELBO on; give at least one")
    for mask in masks:
        mask.check_fits(model)


def sweep_rows(masks: Sequence[LatentMask], terms: NDArray[np.float64]) -> list[SweepRow]:
    """Make a row per mask of `terms`, [masks, 2, N]; `DataError` if a number is not finite."""
    return [SweepRow(mask, *both) for mask, both in zip(masks, finite_terms(terms), strict=True)]


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


class SweepWork(PartWork["ElboSweep", NDArray[np.float64]]):
    """Measures rate and distortion of a part's images under several masks, bits/dim: [masks, 2, images]."""

    def __init__(self, model: HVAE, masks: Sequence[LatentMask], seed: int, device: str | None = None) -> None:
        super().__init__(model, device)
        self.masks, self.seed = list(masks), seed

    def prepare(self, model: HVAE) -> ElboSweep:
        """Take the masks to the model's device."""
        return ElboSweep(model, self.masks)

    def measure(self, tools: ElboSweep, part: Part) -> NDArray[np.float64]:
        """Measure a part batch by batch."""
        terms = np.zeros((len(self.masks), 2, len(part)))
        for numbers, batch in part.batches():
            _, found = tools(torch.from_numpy(batch), part.keys(numbers, self.seed))
            terms[:, :, numbers.start : numbers.stop] = found.cpu().numpy()
            part.report(numbers.stop)
        return terms


class ElboSweep:
    """Measures batches under several masks, with noise by the images' keys."""

    def __init__(self, model: HVAE, masks: Sequence[LatentMask]) -> None:
        self.config, self.device = model.config, model.device
        self.measure = model.recording.of(partial(_measure, model, MaskedElbo(model, masks)), model.device)

    def __call__(self, images: Tensor, keys: Sequence[tuple[int, int]]) -> tuple[Activations, Tensor]:
        """Measure uint8 `images` [B, C, H, W]: their activations, and rate and distortion [masks, 2, B], bits/dim.

        Both hold until the next call.
        """
        return self.measure(images, keyed_rows(self.config, keys, self.device))


@torch.no_grad()
def _measure(model: HVAE, elbo: MaskedElbo, images: Tensor, drawn: Tensor) -> tuple[Activations, Tensor]:
    activations = model.activations(images)
    return activations, elbo(activations, images, noise_of(model.config, drawn))
