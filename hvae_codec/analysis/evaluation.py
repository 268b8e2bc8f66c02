"""Evaluates a model: bounds on -log p(x), how near reconstructions are, and their standard errors over images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from ..data.sources import Images, as_source
from ..engine.engine import Engine
from ..engine.given import Executors, given_engine
from ..engine.tally import Tally
from ..errors import DataError, UsageError
from ..lookahead import map_ahead
from ..model.batch_size import batch_size_of
from ..model.checkpoint import model_hash
from ..model.hvae import HVAE
from ..model.image_noise import ImageNoise
from ..model.importance import posterior_estimates
from ..model.likelihood import Likelihood, make_likelihood
from ..model.precision import full_float32
from ..progress import Progress
from ..prune.parts import Cut, Part, PartWork, measured_parts
from ..prune.sweep import standard_error
from ..train.metrics import ACTIVE_NATS
from .quality import mean_squared_error, psnr, ssim

COLUMNS = {
    "nelbo": "negative ELBO with the analytic KL, bits/dim, average over the posterior samples",
    "rate": "KL of all latent groups, bits/dim",
    "distortion": "-log p(x given z), bits/dim",
    "importance_bound": "importance-weighted bound from K posterior samples, bits/dim",
    "nelbo_exact_bins": "negative ELBO with bins that tile the line, bits/dim",
    "nelbo_published_bins": "negative ELBO with the published models' bins, bits/dim",
    "mse": "mean squared error of the posterior-mean reconstruction, squared pixel levels",
    "ssim": "structural similarity of the posterior-mean reconstruction",
}
"""Figures of each image; the bound only of several samples, the bins only if they differ."""


@dataclass(frozen=True)
class Figure:
    """An average over images."""

    mean: float  # over the images, in `unit`
    standard_error: float  # NaN of one image
    unit: str  # such as bits/dim or dB


@dataclass(frozen=True)
class Evaluation:
    """The figures of a model on some images."""

    figures: dict[str, Figure]  # by name, such as `nelbo`
    images: pd.DataFrame  # one row per image: `name`, `label`, then those of `COLUMNS` that were measured
    kl_nats: NDArray[np.float64]  # KL of each latent group in nats per image, averaged over images, [groups]
    samples: int  # posterior samples per image
    model_hash: str  # the model that was measured
    held_out: bool | None  # whether training leaves the images out; None if that is not known

    @property
    def active_groups(self) -> int:
        """Latent groups whose KL is above 0.01 nats per image on average, as in the metrics of training."""
        return int((self.kl_nats > ACTIVE_NATS).sum())


def evaluate(
    model: HVAE,
    images: Images,
    *,
    samples: int = 1,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    engine: Engine | None = None,
    executor: Executors | None = None,
    device: str | None = None,
    tally: Tally | None = None,
) -> Evaluation:
    """Measure NELBO, rate, distortion, PSNR and SSIM of `images` (a source, or uint8 [N, C, H, W]).

    With `samples` above 1 also the importance-weighted bound, paired with the others: these are averages over the same
    posterior samples. An image's noise depends on `seed` and its index among the images alone. Below 8 bits, and for a
    model with the published bins, the NELBO is given with both kinds of bins. Batches are tasks of `engine`, or of an
    `executor`, as in `kl_stats`. Raises `DataError` if there are no images, they do not fit the model, or a figure is
    not finite; `UsageError` if `samples` or `batch_size` is below 1; and what `kl_stats` raises of engines.
    """
    source = as_source(images)
    if samples < 1:
        raise UsageError(f"the number of posterior samples is {samples}; it must be at least 1")
    if not len(source):
        raise DataError("there are no images to evaluate; give at least one")
    work, cut = EvaluationWork(model, samples, seed, device), Cut.of(batch_size_of(model, batch_size, device))
    with given_engine(engine, executor) as used:
        batches = [each for found in measured_parts(used, work, source, cut, progress, tally) for each in found]
    table = pd.concat([pd.DataFrame(figures) for figures, _ in batches], ignore_index=True)
    kl = sum((kl for _, kl in batches), np.zeros(len(model.config.groups)))
    table.insert(0, "name", list(source.names))
    table.insert(1, "label", list(source.labels))
    finite = np.isfinite(table.select_dtypes("number").to_numpy()).all(axis=1)
    if not finite.all():
        name = table["name"].iloc[int(finite.argmin())]
        raise DataError(f"the NELBO of the image {name} is not finite; the model's weights are damaged")
    return Evaluation(_figures(table, model), table, kl / len(source), samples, model_hash(model), source.held_out)


Figures = tuple[dict[str, NDArray[np.float64]], NDArray[np.float64]]
"""A batch's figures by column, [B], and its groups' KL in nats, summed over images, [groups]."""


class EvaluationWork(PartWork[HVAE, list[Figures]]):
    """Measures a part batch by batch."""

    def __init__(self, model: HVAE, samples: int, seed: int, device: str | None = None) -> None:
        super().__init__(model, device)
        self.samples, self.seed = samples, seed

    def prepare(self, model: HVAE) -> HVAE:
        """Take the model as it is."""
        return model

    def measure(self, tools: HVAE, part: Part) -> list[Figures]:
        """Measure a part; comparing takes Python, so another thread does it while the next batch is computed."""
        measured = _measured(tools, part, self.samples, self.seed)
        compared = map_ahead(_compared, measured, threads=1, waiting=2, name="compare images", eager=True)
        with closing(measured), closing(compared):
            return list(compared)


def _likelihoods(model: HVAE) -> dict[str, Likelihood]:
    """Return the model's own likelihood, and that of the other kind of bins if it differs, by kind of bins."""
    config = model.config
    if config.output == "bernoulli" or (config.bits == 8 and config.bins == "exact"):
        return {config.bins: model.likelihood}
    other: Literal["exact", "published"] = "published" if config.bins == "exact" else "exact"
    return {config.bins: model.likelihood, other: make_likelihood(dataclasses.replace(config, bins=other))}


class _Measured(NamedTuple):
    """What the model tells of a batch."""

    bits: dict[str, NDArray[np.float64]]  # figures by column, [B]
    kl: NDArray[np.float64]  # of each group in nats, summed over images, [groups]
    seen: NDArray[np.uint8]  # the images as the model sees them, [B, C, H, W]
    decoded: NDArray[np.uint8]  # their reconstructions


def _measured(model: HVAE, part: Part, samples: int, seed: int) -> Generator[_Measured]:
    """Measure the images of `part` batch by batch."""
    likelihoods = _likelihoods(model)
    with closing(part.batches()) as batches:
        for numbers, batch in batches:

            def on_sample(k: int, numbers: range = numbers) -> None:
                part.report(numbers.start + len(numbers) * k // (samples + 1))

            noise = ImageNoise(seed, range(part.first + numbers.start, part.first + numbers.stop))
            found = _measure(model, torch.from_numpy(batch), likelihoods, noise, samples, on_sample)
            part.report(numbers.stop)
            yield found


def _compared(batch: _Measured) -> Figures:
    """Return all figures of a batch by column, [B], and its groups' KL."""
    quality = {"mse": mean_squared_error(batch.seen, batch.decoded), "ssim": ssim(batch.seen, batch.decoded)}
    return batch.bits | quality, batch.kl


@torch.no_grad()
@full_float32()
def _measure(
    model: HVAE,
    images: torch.Tensor,
    likelihoods: Mapping[str, Likelihood],
    noise: ImageNoise,
    samples: int,
    on_sample: Callable[[int], None],
) -> _Measured:
    """Measure a batch."""
    activations = model.activations(images)
    estimates = posterior_estimates(
        model, images, activations, noise, samples, likelihoods=list(likelihoods.values()), on_sample=on_sample
    )
    in_nats = (estimates.kl.sum(dim=0), estimates.nll, estimates.bound[0])
    rate, distortions, bound = ((nats / model.nats_per_bit_dim).cpu().numpy() for nats in in_nats)
    part = {"nelbo": rate + distortions[0], "rate": rate, "distortion": distortions[0]}  # the model's own is first
    if samples > 1:
        part["importance_bound"] = bound
    if len(likelihoods) > 1:
        part |= {f"nelbo_{bins}_bins": rate + row for bins, row in sorted(zip(likelihoods, distortions, strict=True))}
    output = model.top_down(activations, model.choose_best(), len(images))
    decoded = model.likelihood.to_pixels(model.likelihood.mean(output)).cpu().numpy()
    seen = model.likelihood.quantised(images).cpu().numpy()
    return _Measured(part, estimates.kl.sum(dim=1).cpu().numpy(), seen, decoded)


_CHANGES = {
    "importance_bound": ("importance_bound_change", "nelbo"),
    "nelbo_published_bins": ("bins_change", "nelbo_exact_bins"),
}
"""Figures whose difference from another one is given too: its name, and the other."""


def _figures(table: pd.DataFrame, model: HVAE) -> dict[str, Figure]:
    bits = {}
    for name in (name for name in COLUMNS if name in table and name not in ("mse", "ssim")):
        bits[name] = table[name].to_numpy()
        if name in _CHANGES:
            change, reference = _CHANGES[name]
            bits[change] = (table[name] - table[reference]).to_numpy()
    figures = {name: _average(values, "bits/dim") for name, values in bits.items()}
    if model.config.output == "bernoulli":
        nats = {f"{name}_nats": values * model.nats_per_bit_dim for name, values in bits.items()}
        figures |= {name: _average(values, "nats") for name, values in nats.items()}
    return figures | {"psnr": _psnr(table["mse"].to_numpy()), "ssim": _average(table["ssim"].to_numpy(), "")}


def _average(values: NDArray[np.float64], unit: str) -> Figure:
    return Figure(float(values.mean()), standard_error(values), unit)


def _psnr(mse: NDArray[np.float64]) -> Figure:
    """Return the PSNR of all images together, with its standard error by the delta method.

    That is |d PSNR / d mean(mse)| · error of the mean = 10 / ln 10 · (relative error of the mean squared error).
    """
    mean = _average(mse, "")
    relative = mean.standard_error / mean.mean if mean.mean > 0.0 else mean.standard_error
    return Figure(psnr(mse), 10.0 / math.log(10.0) * relative, "dB")
