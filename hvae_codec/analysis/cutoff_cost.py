"""What a cutoff costs, measured and in words."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from scipy.stats import t as student_t

from ..data.sources import ImageSource
from ..distributed import DistributedContext
from ..encode.pipeline import SAMPLE_IMAGES
from ..errors import UsageError
from ..model.hvae import HVAE
from ..progress import Progress, Stage
from ..prune.cutoffs import TOLERANCE, Cutoff, CutoffSpec, tolerated_cutoff
from ..prune.kl_stats import KLStats
from ..prune.mask import LatentMask
from ..prune.sweep import sweep
from ..prune.tolerance import Tolerated, find_tolerated


@dataclass(frozen=True)
class CutoffCost:
    """Mean NELBO of the same held-out images with the kept latents and with all, bits/dim."""

    kept: float
    everything: float
    change_se: float
    """Standard error of the paired difference."""
    images: int


def chosen_cutoff(
    wish: CutoffSpec,
    model: HVAE,
    stats: KLStats,
    images: ImageSource,
    *,
    batch_size: int,
    seed: int,
    stage: Stage,
    processes: DistributedContext | None = None,
) -> tuple[Cutoff, str]:
    """The cutoff that `wish` asks for, looked for on `images` where it is a tolerance; and a sentence about it."""
    cutoff = wish.cutoff(model, stats)
    if cutoff is not None:
        return cutoff, cutoff.note
    found = find_tolerated(
        model,
        images,
        stats,
        wish.tolerance or 0.0,
        granularity=wish.granularity,
        batch_size=batch_size,
        seed=seed,
        progress=stage("Looking for the cutoff"),
        processes=processes,
    )
    return tolerated_cutoff(found), tolerance_sentence(found)


def images_to_evaluate(text: str) -> int | None:
    """How many held-out images a cutoff's cost is measured on: 0 for `none`, None for `all`; `UsageError` otherwise.

    >>> images_to_evaluate("none"), images_to_evaluate("1000"), images_to_evaluate("all")
    (0, 1000, None)
    """
    if text not in ("none", "all") and not re.fullmatch(r"[1-9]\d{0,17}", text):
        raise UsageError(f"--evaluate is {text!r}; give none, a number of images such as 1000, or all")
    return {"none": 0, "all": None}[text] if text in ("none", "all") else int(text)


def choose_and_measure(
    wish: CutoffSpec,
    model: HVAE,
    stats: KLStats,
    source: ImageSource,
    batch_size: int,
    seed: int,
    stage: Stage,
    images: int | None = SAMPLE_IMAGES,
) -> tuple[LatentMask, list[str]]:
    """The mask that `wish` asks for, and what is to be said of it and of its cost on images held out of `source`.

    The cost is measured on at most `images` of them: all where that is None, and not at all where it is 0.
    """
    held_out = source.split("val")
    cutoff, sentence = chosen_cutoff(
        wish, model, stats, held_out.evenly(SAMPLE_IMAGES), batch_size=batch_size, seed=seed, stage=stage
    )
    found = [sentence] if sentence else []
    if images == 0:
        return cutoff.mask, [*found, kept_sentence(cutoff.mask)]
    measured = held_out if images is None else held_out.evenly(images)
    cost = cutoff_cost(model, measured, stats, cutoff.mask, batch_size, seed, stage("NELBO at this cutoff"))
    return cutoff.mask, [*found, cost_sentence(cost, cutoff.mask)]


def cutoff_cost(
    model: HVAE,
    images: ImageSource,
    stats: KLStats,
    mask: LatentMask,
    batch_size: int,
    seed: int,
    progress: Progress,
) -> CutoffCost:
    """NELBO of `images` with `mask` and without pruning."""
    everything = LatentMask.everything(stats)
    kept, dense = sweep(model, images, [mask, everything], batch_size=batch_size, seed=seed, progress=progress)
    _, error = kept.change_from(dense)
    return CutoffCost(kept.nelbo.mean(), dense.nelbo.mean(), error, len(images))


def kept_sentence(mask: LatentMask) -> str:
    """What the cutoff keeps, for the terminal."""
    of = f"{mask.kept_variates} variates" + (", in part" if mask.granularity == "position" else "")
    return f"Kept {mask.kept_dims:,} of {mask.dims:,} latent dimensions ({100 * mask.kept_share:.2f}%, {of})."


def cost_sentence(cost: CutoffCost, mask: LatentMask) -> str:
    """What the cutoff keeps and what that costs, for the terminal."""
    change = cost.kept - cost.everything
    error = "" if math.isnan(cost.change_se) else f" ± {cost.change_se:.5f}"
    return (
        f"{kept_sentence(mask)}\n"
        f"NELBO {cost.kept:.3f} bits/dim against {cost.everything:.3f} with all: {change:+.5f}{error} "
        f"({100 * change / cost.everything:+.2f}%), on {cost.images:,} held-out images."
    )


def tolerance_sentence(found: Tolerated) -> str:
    """What was found for a tolerance, and how sure it is."""
    wanted, images = f"{100 * found.tolerance:g}%", f"{found.images:,} held-out images"
    if found.mask.kept_dims == found.mask.dims:
        return f"No smaller mask was found that loses at most {wanted} of the NELBO on {images}; kept all latents."
    share = f"{100 * found.mask.kept_share:.2f}% of the dimensions"
    loss = f"{100 * found.loss:+.3f}%"
    if math.isnan(found.confidence):
        return f"Tolerance {wanted}: {share} change the NELBO by {loss}, on {images}; one image gives no confidence."
    error = 100 * found.change_se / found.nelbo
    confidence = f"{100 * found.confidence:.0f}%" if found.confidence < 0.99 else "more than 99%"
    return (
        f"Tolerance {wanted}: {share} change the NELBO by {loss} ± {error:.3f}%, below {wanted} with {confidence} "
        f"confidence, on the {images} that it was chosen on."
    )


def best_sentence(table: pd.DataFrame, images: int) -> str:
    """Whether a cutoff of the table improves the bound, and by how many standard errors over `images`.

    Those found for a tolerance are left out: many were tried to find one.
    """
    rows: Sequence[Mapping[Any, Any]] = [
        row
        for row in table.to_dict(orient="records")
        if row["kept_dims"] < row["dims"] and not row["rule"].startswith(TOLERANCE)
    ]
    best = min(rows, key=lambda row: row["nelbo_change"], default=None)
    if best is None:
        return ""
    if best["nelbo_change"] >= 0:
        return "No cutoff improves the bound."
    change = f"{best['rule']} improves the bound by {-best['nelbo_change']:.5f} bits/dim"
    if math.isnan(best["nelbo_change_se"]):
        return f"{change}; one image says nothing about others."
    errors = -best["nelbo_change"] / max(best["nelbo_change_se"], 1e-12)
    sure = "significant" if errors > _critical(len(rows), images) else "which may be chance"
    return f"{change}: {errors:.1f} standard errors, {sure} at the 5% level for the best of {len(rows)} cutoffs."


def _critical(comparisons: int, images: int) -> float:
    """Standard errors that the best of several mean differences must exceed (Bonferroni, one-sided 5%)."""
    return float(student_t.isf(0.05 / comparisons, images - 1))
