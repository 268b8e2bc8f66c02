"""Evaluates a model: bounds on -log p(x), how near reconstructions are, and their standard errors over images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray

from ..data.sources import ImageSource, as_source
from ..errors import DataError, UsageError
from ..model.checkpoint import model_hash
from ..model.hvae import HVAE, posterior_mean
from ..model.image_noise import ImageNoise
from ..model.importance import PosteriorEstimates, posterior_estimates
from ..model.likelihood import Likelihood, make_likelihood
from ..model.precision import full_float32
from ..progress import Progress
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

    mean: float
    standard_error: float
    """NaN of one image."""
    unit: str


@dataclass(frozen=True)
class Evaluation:
    """The figures of a model on some images."""

    figures: dict[str, Figure]
    """By name, such as `nelbo`."""
    images: pd.DataFrame
    """One row per image: `name`, `label`, then those of `COLUMNS` that were measured."""
    kl_nats: NDArray[np.float64]
    """KL of each latent group in nats per image, averaged over images, [groups]."""
    samples: int
    """Posterior samples per image."""
    model_hash: str

    @property
    def active_groups(self) -> int:
        """Latent groups whose average KL is above `ACTIVE_NATS`, as in the metrics of training."""
        return int((self.kl_nats > ACTIVE_NATS).sum())


def evaluate(
    model: HVAE,
    images: ImageSource | ArrayLike,
    *,
    samples: int = 1,
    batch_size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure NELBO, rate, distortion, PSNR and SSIM of `images` (a source, or uint8 [N, C, H, W]).

    With `samples` above 1 also the importance-weighted bound; NELBO, rate and distortion are then averages over the
    same posterior samples, so that the difference from the bound is paired. An image's noise depends on `seed` and its
    index among the images alone: figures do not depend on the batch size. Below 8 bits, and for a model with the
    published bins, the NELBO is given with both kinds of bins. Raises `DataError` if there are no images, they do
    not fit the model, or a figure is not finite; `UsageError` if `samples` or `batch_size` is below 1.
    """
    source = as_source(images)
    if samples < 1:
        raise UsageError(f"the number of posterior samples is {samples}; it must be at least 1")
    if not len(source):
        raise DataError("there are no images to evaluate; give at least one")
    parts, kl = [], np.zeros(len(model.config.groups))
    for part, batch_kl in _batches(model, source, samples, batch_size, seed, progress):
        parts.append(part)
        kl += batch_kl
    table = pd.DataFrame({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    table.insert(0, "name", list(source.names))
    table.insert(1, "label", list(source.labels))
    _check_finite(table)
    return Evaluation(_figures(table, model), table, kl / len(source), samples, model_hash(model))


Part = dict[str, NDArray[np.float64]]


def _batches(
    model: HVAE, source: ImageSource, samples: int, batch_size: int, seed: int, progress: Progress | None
) -> Iterator[tuple[Part, NDArray[np.float64]]]:
    """Yield each batch's figures by column, [B], and its groups' KL in nats summed over images, [groups]."""
    likelihoods = _likelihoods(model)
    done = 0
    for batch in source.batches(batch_size):
        first, size = done, len(batch)

        def on_sample(k: int, first: int = first, size: int = size) -> None:
            if progress is not None:
                progress(first + size * k // (samples + 1), len(source))

        noise = ImageNoise(seed, range(first, first + size))
        yield _measure(model, torch.from_numpy(batch), likelihoods, noise, samples, on_sample)
        done += size
        if progress is not None:
            progress(done, len(source))


def _likelihoods(model: HVAE) -> dict[str, Likelihood]:
    """The model's own, and if it matters to the figures, the one with the other kind of bins, by kind of bins."""
    config = model.config
    own: dict[str, Likelihood] = {config.bins: model.likelihood}
    if config.output == "bernoulli" or (config.bits == 8 and config.bins == "exact"):
        return own
    other: Literal["exact", "published"] = "published" if config.bins == "exact" else "exact"
    return own | {other: make_likelihood(dataclasses.replace(config, bins=other))}


@torch.no_grad()
@full_float32()
def _measure(
    model: HVAE,
    images: torch.Tensor,
    likelihoods: Mapping[str, Likelihood],
    noise: ImageNoise,
    samples: int,
    on_sample: Callable[[int], None],
) -> tuple[Part, NDArray[np.float64]]:
    activations = model.activations(images)
    readers = list(likelihoods.values())
    estimates = posterior_estimates(
        model, images, activations, noise, samples, likelihoods=readers, on_sample=on_sample
    )
    part = _bounds(estimates, list(likelihoods), model.nats_per_bit_dim, samples)
    output = model.top_down(activations, posterior_mean, len(images))
    decoded = model.likelihood.to_pixels(model.likelihood.mean(output)).cpu().numpy()
    seen = model.likelihood.quantised(images).cpu().numpy()
    part |= {"mse": mean_squared_error(seen, decoded), "ssim": ssim(seen, decoded)}
    return part, estimates.kl.sum(dim=1).cpu().numpy()


def _bounds(estimates: PosteriorEstimates, bins: Sequence[str], nats_per_bit_dim: float, samples: int) -> Part:
    """Columns in bits/dim, [B]; the first likelihood is the model's own."""
    in_nats = (estimates.kl.sum(dim=0), estimates.nll, estimates.bound[0])
    rate, distortions, bound = ((nats / nats_per_bit_dim).cpu().numpy() for nats in in_nats)
    part = {"nelbo": rate + distortions[0], "rate": rate, "distortion": distortions[0]}
    if samples > 1:
        part["importance_bound"] = bound
    if len(bins) > 1:
        part |= {f"nelbo_{kind}_bins": rate + row for kind, row in sorted(zip(bins, distortions, strict=True))}
    return part


def _check_finite(table: pd.DataFrame) -> None:
    finite = np.isfinite(table.select_dtypes("number").to_numpy()).all(axis=1)
    if not finite.all():
        name = table["name"].iloc[int((~finite).argmax())]
        raise DataError(f"the NELBO of the image {name} is not finite; the model's weights are damaged")


def _figures(table: pd.DataFrame, model: HVAE) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    for name, values in _bits(table):
        figures[name] = _average(values, "bits/dim")
    if model.config.output == "bernoulli":
        for name, values in _bits(table):
            figures[f"{name}_nats"] = _average(values * model.nats_per_bit_dim, "nats")
    figures["psnr"] = _psnr(table["mse"].to_numpy())
    figures["ssim"] = _average(table["ssim"].to_numpy(), "")
    return figures


def _bits(table: pd.DataFrame) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Each figure in bits/dim and its values, [N]; differences follow what they are differences of."""
    for name in COLUMNS:
        if name in table and name not in ("mse", "ssim"):
            yield name, table[name].to_numpy()
        if name in table and name in _CHANGES:
            change, reference = _CHANGES[name]
            yield change, (table[name] - table[reference]).to_numpy()


_CHANGES = {
    "importance_bound": ("importance_bound_change", "nelbo"),
    "nelbo_published_bins": ("bins_change", "nelbo_exact_bins"),
}
"""Figures whose difference from another one is given too: its name, and the other."""


def _average(values: NDArray[np.float64], unit: str) -> Figure:
    """Mean over images, and its standard error: std / sqrt(N)."""
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Figure(float(values.mean()), float(error), unit)


def _psnr(mse: NDArray[np.float64]) -> Figure:
    """PSNR of all images together; its standard error by the delta method: |d PSNR / d mean(mse)| · error of the mean.

    That is 10 / ln 10 · (relative standard error of the mean squared error).
    """
    mean = _average(mse, "")
    relative = mean.standard_error / mean.mean if mean.mean > 0.0 else mean.standard_error
    return Figure(psnr(mse), 10.0 / math.log(10.0) * relative, "dB")
