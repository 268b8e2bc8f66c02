"""The whole of analyze-kl: ranking, the cutoff table, and where both are kept in a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..encode.coder import LatentCoder, quantiser_steps
from ..encode.latents import Codec
from ..encode.quality import mean_squared_error, psnr, ssim
from ..encode.size import SizeMeter
from ..images import ImageSource
from ..model.hvae import HVAE
from ..prune.kl_stats import KLStats, kl_stats
from ..prune.mask import LatentMask
from ..prune.sweep import SweepRow, sweep

FOLDER = "analysis"
RANKING_FILE = "kl_stats.npz"
SHEET_IMAGES = 10

Stage = Callable[[str], Callable[[int, int], None]]
"""Announces a piece of long work by name, and returns what to call with its images done and in all."""


@dataclass(frozen=True)
class Analysis:
    """What analyze-kl found."""

    stats: KLStats
    table: pd.DataFrame
    """One row a cutoff; `COLUMNS` says what is in it."""
    originals: NDArray[np.uint8]
    """A few of the images as the model sees them, uint8 [n, C, H, W]."""
    decoded: tuple[NDArray[np.uint8], ...]
    """The same ones encoded and decoded at each cutoff."""


COLUMNS = {
    "keep": "share of the latent dimensions asked for",
    "kept_variates": "variates kept",
    "kept_dims": "latent dimensions kept, an image",
    "nelbo": "negative ELBO, bits/dim",
    "reconstruction": "distortion, bits/dim",
    "kl": "rate, bits/dim",
    "nelbo_change": "mean difference from all latents, bits/dim, on the same images and noise",
    "nelbo_change_se": "standard error of that difference, bits/dim",
    "psnr": "of all images encoded and decoded, from their mean squared error, dB",
    "ssim": "of images encoded and decoded, mean",
    "bytes": "compressed latents, bytes an image",
    "bits_per_dim": "compressed latents, bits/dim",
    "dense_bytes": "all latents' mean and std as float32, bytes an image",
}


def ranking_path(run: Path) -> Path:
    """Where a run keeps its ranking."""
    return run / FOLDER / RANKING_FILE


def rank(model: HVAE, training: ImageSource, count: int, batch_size: int, seed: int, stage: Stage) -> KLStats:
    """KL statistics of at most `count` images, evenly spaced over `training`."""
    return kl_stats(model, training.evenly(count), batch_size=batch_size, seed=seed, progress=stage("Ranking by KL"))


def analyze(
    model: HVAE,
    stats: KLStats,
    held_out: ImageSource,
    keeps: Sequence[float],
    codec: Codec,
    *,
    batch_size: int,
    seed: int,
    stage: Stage,
) -> Analysis:
    """The cutoff table of `held_out` for the keep fractions `keeps`, with variates ranked by `stats`.

    Differences are from all latents, which are measured too where `keeps` lacks 100%.
    """
    masks = [LatentMask.from_keep(stats, keep) for keep in keeps]
    measured = masks if 1.0 in keeps else [*masks, LatentMask.from_keep(stats, 1.0)]
    progress = stage("NELBO at each cutoff")
    measurements = sweep(model, held_out, measured, batch_size=batch_size, seed=seed, progress=progress)
    dense = measurements[keeps.index(1.0) if 1.0 in keeps else -1]
    rows = measurements[: len(masks)]
    coders = [LatentCoder(model, mask, codec, quantiser_steps(mask, codec, stats)) for mask in masks]
    decoded = _decode_all(coders, held_out, batch_size, stage("Decoding at each cutoff"))
    cutoffs = zip(keeps, rows, decoded, strict=True)
    table = pd.DataFrame([_table_row(keep, row, dense, d, model) for keep, row, d in cutoffs], columns=_columns(model))
    examples = torch.from_numpy(held_out.read(_sheet_indices(held_out)))
    originals = model.likelihood.quantised(examples).numpy()
    return Analysis(stats, table, originals, tuple(d.examples() for d in decoded))


def _columns(model: HVAE) -> list[str]:
    return [*COLUMNS, "nelbo_nats"] if model.config.output == "bernoulli" else list(COLUMNS)


class _Decoded:
    """What encoding and decoding at one cutoff gave."""

    def __init__(self, wanted: Sequence[int]) -> None:
        self.wanted = set(wanted)
        self.sizes = SizeMeter()
        self.mse: list[NDArray[np.float64]] = []
        self.ssim: list[NDArray[np.float64]] = []
        self._examples: list[NDArray[np.uint8]] = []
        self._done = 0

    def add(self, images: NDArray[np.uint8], stored: dict[int, NDArray[np.generic]], pixels: Tensor) -> None:
        decoded = pixels.cpu().numpy()
        self.sizes.add(stored)
        self.mse.append(mean_squared_error(images, decoded))
        self.ssim.append(ssim(images, decoded))
        self._examples += [image for i, image in enumerate(decoded, self._done) if i in self.wanted]
        self._done += len(images)

    def examples(self) -> NDArray[np.uint8]:
        return np.stack(self._examples)


@torch.no_grad()
def _decode_all(
    coders: Sequence[LatentCoder], source: ImageSource, batch_size: int, progress: Callable[[int, int], None]
) -> list[_Decoded]:
    results = [_Decoded(_sheet_indices(source)) for _ in coders]
    done = 0
    for batch in source.batches(batch_size):
        images = torch.from_numpy(batch)
        activations = coders[0].model.activations(images)
        seen = coders[0].model.likelihood.quantised(images).numpy()
        for coder, result in zip(coders, results, strict=True):
            result.add(seen, *coder.encode_and_decode(activations))
        done += len(batch)
        progress(done, len(source))
    return results


def _sheet_indices(source: ImageSource) -> list[int]:
    """Images to show: the middle one of each class where there are several, else evenly spaced ones."""
    classes: dict[str, list[int]] = {}
    for index, label in enumerate(source.labels):
        classes.setdefault(label, []).append(index)
    middles = [indices[len(indices) // 2] for indices in classes.values()]
    candidates = middles if len(middles) > 1 else list(range(len(source)))
    places = np.linspace(0, len(candidates) - 1, min(SHEET_IMAGES, len(candidates))).round().astype(int)
    return sorted({candidates[place] for place in places})


def _table_row(keep: float, row: SweepRow, dense: SweepRow, decoded: _Decoded, model: HVAE) -> dict[str, float]:
    change, change_se = row.change_from(dense)
    bytes_per_image = decoded.sizes.bytes_per_image()
    return {
        "keep": keep,
        "kept_variates": row.mask.kept_variates,
        "kept_dims": row.mask.kept_dims,
        "nelbo": row.nelbo.mean(),
        "reconstruction": row.distortion.mean(),
        "kl": row.rate.mean(),
        "nelbo_change": change,
        "nelbo_change_se": change_se,
        "psnr": psnr(np.concatenate(decoded.mse)),
        "ssim": np.concatenate(decoded.ssim).mean(),
        "bytes": bytes_per_image,
        "bits_per_dim": 8 * bytes_per_image / model.config.image_dims,
        "dense_bytes": 8 * row.mask.dims,
        "nelbo_nats": row.nelbo.mean() * model.nats_per_bit_dim,
    }
