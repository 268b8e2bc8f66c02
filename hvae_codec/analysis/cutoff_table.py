"""The cutoff table: what each cutoff keeps, costs and takes, measured in one pass over held-out images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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
from ..prune.sweep import SweepRow, check_measurable, standard_error, sweep_rows
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
    "step": "quantiser step, in average posterior stds or, of a run with codes, in learned steps; not of floats",
    "psnr": "of the images encoded and decoded, from their mean squared error, dB",
    "ssim": "of the images encoded and decoded, mean",
    "bytes": "compressed latents, bytes per image",
    "bits_per_dim": "compressed latents, bits/dim",
    "closed_loop": "distortion of decoded images, -log2 p(x given decoded z), bits/dim; see `MeasuredMask.closed_loop`",
    "closed_loop_change": "mean difference of that from posterior samples of the images encoded and decoded, bits/dim",
    "closed_loop_change_se": "standard error of that difference, bits/dim",
    "description_length": "compressed latents and distortion of decoded images together, bits/dim",
    "dense_bytes": "all latents' mean and std as float32, bytes per image",
}


def analyze(
    model: HVAE,
    stats: KLStats,
    held_out: ImageSource,
    cutoffs: Sequence[Cutoff],
    codec: Codec | Sequence[Codec],
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

    `codec` is that of all cutoffs, or one for each of those that `merge_equal` makes of them. Bytes are those of stores
    in which codes have `packing`; floats have blosc. At most `pictures` images, evenly spaced, are also encoded,
    decoded and compared. The bottom-up path runs once a batch, for the bound and the pictures at all cutoffs.
    Differences are from all latents, which are measured too if no cutoff keeps them. Cutoffs of one mask are one row.
    Row groups are tasks of `engine`. Raises like `sweep`.
    """
    if not cutoffs:
        raise UsageError("there is no cutoff to measure; give at least one")
    cutoffs = merge_equal(cutoffs)
    masks, codecs = [cutoff.mask for cutoff in cutoffs], _each(codec, len(cutoffs))
    more: dict[str, Any] = {"progress": progress, "engine": engine, "device": device, "tally": tally}
    shown = example_indices(held_out.evenly(min(pictures, len(held_out))))
    originals, measured, dense = measure_masks(
        model, stats, held_out, masks, codecs, pictures, shown, packing, batch_size=batch_size, seed=seed, **more
    )
    each = zip(cutoffs, codecs, measured, strict=True)
    table = pd.DataFrame([_table_row(*one, dense, stats, model) for one in each])
    pixels = tuple(one.decoded.examples for one in measured)
    return Analysis(stats, table, originals, pixels, tuple(masks), tuple(one.row for one in measured))


def _each(codec: Codec | Sequence[Codec], count: int) -> list[Codec]:
    return list(codec) if isinstance(codec, Sequence) else [codec] * count


class MeasuredMask(NamedTuple):
    """What was measured of one mask."""

    row: SweepRow  # of all images
    decoded: Reconstruction  # of some, which are the first of the row's

    @property
    def closed_loop(self) -> tuple[float, float, float]:
        """Return the mean distortion of decoded images, and its mean paired difference ± from posterior samples.

        Images that are not decoded count with what posterior samples have, plus that difference: so the mean is of
        the same images as the bound, and one is not compared with another of other images.
        """
        change = self.decoded.distortion - self.row.distortion[: len(self.decoded.distortion)]
        return float(self.row.distortion.mean() + change.mean()), float(change.mean()), standard_error(change)


def measure_masks(
    model: HVAE,
    stats: KLStats,
    images: ImageSource,
    masks: Sequence[LatentMask],
    codecs: Sequence[Codec],
    pictures: int,
    shown: Sequence[int] = (),
    packing: str = ZSTD,
    *,
    batch_size: int | None,
    seed: int,
    progress: Progress | None = None,
    engine: Engine | None = None,
    device: str | None = None,
    tally: Tally | None = None,
) -> tuple[NDArray[np.uint8], list[MeasuredMask], SweepRow]:
    """Measure `images` under masks of rising size and under all latents; encode, pack and decode some as codecs say.

    These are at most `pictures`, evenly spaced; of them, those of the numbers `shown` are kept: uint8 [n, C, H, W].
    Returns these, each mask's figures, and the row of all latents.
    """
    pictures, images = min(pictures, len(images)), images.evenly_first(pictures)
    everything = LatentMask.everything(stats)
    measured = list(masks) if masks[-1].kept_dims == everything.kept_dims else [*masks, everything]
    check_measurable(model, measured, images)
    steps = [quantiser_steps(mask, codec, stats) for mask, codec in zip(masks, codecs, strict=True)]
    dtypes = [array_dtypes(mask, codec, stats, packing=packing) for mask, codec in zip(masks, codecs, strict=True)]
    packing = packing_of(codecs[0].dtype, packing)
    work = TableWork(model, measured, codecs, steps, packing, dtypes, pictures, shown, seed, device)
    # Whole row groups, which cut latents into the chunks that a store has.
    cut = Cut.of(batch_size_of(model, batch_size, device), unit=ROW_GROUP_SIZE)
    parts = list(measured_parts(engine or Here(), work, images, cut, progress, tally))
    rows = sweep_rows(measured, np.concatenate([part.terms for part in parts], axis=2))
    originals, decoded = reconstructions([part.compared for part in parts])
    return originals, [*map(MeasuredMask, rows, decoded)], rows[-1]


def _table_row(
    cutoff: Cutoff, codec: Codec, measured: MeasuredMask, dense: SweepRow, stats: KLStats, model: HVAE
) -> dict[str, Any]:
    row, decoded = measured
    (change, change_se), (closed, closed_change, closed_se) = row.change_from(dense), measured.closed_loop
    stored = 8 * decoded.bytes_per_image / model.config.image_dims
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
        **({"step": codec.to_dict()["step"]} if "step" in codec.to_dict() else {}),
        "psnr": decoded.psnr,
        "ssim": decoded.ssim,
        "bytes": decoded.bytes_per_image,
        "bits_per_dim": stored,
        "closed_loop": closed,
        "closed_loop_change": closed_change,
        "closed_loop_change_se": closed_se,
        "description_length": stored + closed,
        "dense_bytes": 8 * row.mask.dims,
    } | ({"nelbo_nats": row.nelbo.mean() * model.nats_per_bit_dim} if model.config.output == "bernoulli" else {})
