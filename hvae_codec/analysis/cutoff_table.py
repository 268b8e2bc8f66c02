"""The cutoff table: what each cutoff keeps, costs and takes, measured in one pass over held-out images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..config import ROW_GROUP_SIZE
from ..data.sources import ImageSource
from ..encode.array_dtypes import array_dtypes
from ..encode.coder import quantiser_steps
from ..engine.engine import Engine, Here
from ..engine.tally import Tally
from ..errors import UsageError
from ..model.batch_size import batch_size_of
from ..model.hvae import HVAE
from ..progress import Progress
from ..prune.cutoffs import Cutoff, merge_equal
from ..prune.kl_stats import KLStats
from ..prune.mask import LatentMask
from ..prune.parts import Cut, measured_parts
from ..prune.sweep import SweepRow, check_measurable, sweep_rows
from ..store.compressors import ZSTD, packing_of
from ..store.quantiser import Codec
from .reconstruction import Reconstruction, example_indices, reconstructions
from .table_work import TableWork


@dataclass(frozen=True)
class Analysis:
    """The cutoff table, with a few of its images and its masks."""

    stats: KLStats
    table: pd.DataFrame  # one row per mask, from the smallest to the largest; `COLUMNS` says what is in it
    originals: NDArray[np.uint8]  # a few of the images as the model sees them, uint8 [n, C, H, W]
    decoded: tuple[NDArray[np.uint8], ...]  # the same ones encoded and decoded at each cutoff
    masks: tuple[LatentMask, ...]  # what each row of the table keeps
    rows: tuple[SweepRow, ...] = ()  # rate and distortion of every image at each, in the table's order


COLUMNS = {
    "rule": "what was asked for",
    "keep": "share of the latent dimensions (or variates) asked for, the smallest of several; else the share kept",
    "cutoff": "highest average KL of what is pruned, bits per latent dimension",
    "kept_variates": "variates kept, at one position at least",
    "kept_dims": "latent dimensions kept, per image",
    "dims": "latent dimensions in all, per image",
    "nelbo": "negative ELBO, bits/dim",
    "reconstruction": "distortion, bits/dim",
    "kl": "rate, bits/dim",
    "nelbo_change": "mean difference from all latents, bits/dim, on the same images and noise",
    "nelbo_change_se": "standard error of that difference, bits/dim",
    "psnr": "of the images encoded and decoded, from their mean squared error, dB",
    "ssim": "of the images encoded and decoded, mean",
    "bytes": "compressed latents, bytes per image",
    "bits_per_dim": "compressed latents, bits/dim",
    "dense_bytes": "all latents' mean and std as float32, bytes per image",
}


def analyze(
    model: HVAE,
    stats: KLStats,
    held_out: ImageSource,
    cutoffs: Sequence[Cutoff],
    codec: Codec,
    *,
    batch_size: int | None,
    seed: int,
    packing: str = ZSTD,
    pictures: int = ROW_GROUP_SIZE,
    progress: Progress | None = None,
    engine: Engine | None = None,
    device: str | None = None,
    tally: Tally | None = None,
) -> Analysis:
    """Measure the cutoff table of `held_out`, with quantiser steps from `stats`.

    Bytes are those of stores in which codes have `packing`; floats have blosc.
    At most `pictures` images, evenly spaced, are also encoded, decoded and compared. The bottom-up path runs once a
    batch, for the bound and the pictures at all cutoffs. Differences are from all latents, which are measured too
    if no cutoff keeps them. Cutoffs of one mask are one row. Row groups are tasks of `engine`. Raises like `sweep`.
    """
    if not cutoffs:
        raise UsageError("there is no cutoff to measure; give at least one")
    pictures = min(pictures, len(held_out))
    seen, held_out = held_out.evenly(pictures), held_out.evenly_first(pictures)
    cutoffs = merge_equal(cutoffs)
    masks = [cutoff.mask for cutoff in cutoffs]
    everything = LatentMask.everything(stats)
    measured = masks if masks[-1].kept_dims == everything.kept_dims else [*masks, everything]
    check_measurable(model, measured, held_out)
    steps = [quantiser_steps(mask, codec, stats) for mask in masks]
    dtypes = [array_dtypes(mask, codec, stats, packing=packing) for mask in masks]
    packing, shown = packing_of(codec.dtype, packing), example_indices(seen)
    work = TableWork(model, measured, codec, steps, packing, dtypes, pictures, shown, seed, device)
    # Whole row groups, which cut latents into the chunks that a store has.
    cut = Cut.of(batch_size_of(model, batch_size, device), unit=ROW_GROUP_SIZE)
    parts = list(measured_parts(engine or Here(), work, held_out, cut, progress, tally))
    rows = sweep_rows(measured, np.concatenate([part.terms for part in parts], axis=2))
    originals, decoded = reconstructions([part.compared for part in parts])
    each = zip(cutoffs, rows[: len(masks)], decoded, strict=True)
    table = pd.DataFrame([_table_row(*one, rows[-1], stats, model) for one in each])
    return Analysis(
        stats, table, originals, tuple(d.examples for d in decoded), tuple(masks), tuple(rows[: len(masks)])
    )


def _table_row(
    cutoff: Cutoff, row: SweepRow, decoded: Reconstruction, dense: SweepRow, stats: KLStats, model: HVAE
) -> dict[str, Any]:
    change, change_se = row.change_from(dense)
    return {
        "rule": cutoff.rule,
        "keep": cutoff.keep,
        "cutoff": row.mask.cutoff_bits(stats),
        "kept_variates": row.mask.kept_variates,
        "kept_dims": row.mask.kept_dims,
        "dims": row.mask.dims,
        "nelbo": row.nelbo.mean(),
        "reconstruction": row.distortion.mean(),
        "kl": row.rate.mean(),
        "nelbo_change": change,
        "nelbo_change_se": change_se,
        "psnr": decoded.psnr,
        "ssim": decoded.ssim,
        "bytes": decoded.bytes_per_image,
        "bits_per_dim": 8 * decoded.bytes_per_image / model.config.image_dims,
        "dense_bytes": 8 * row.mask.dims,
    } | ({"nelbo_nats": row.nelbo.mean() * model.nats_per_bit_dim} if model.config.output == "bernoulli" else {})
