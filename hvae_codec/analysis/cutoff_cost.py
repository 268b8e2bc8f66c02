"""Chooses the cutoff that was asked for, and measures what it costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..data.sources import ImageSource
from ..encode.pipeline import SAMPLE_IMAGES
from ..engine.engine import Engine
from ..engine.tally import Tally
from ..model.hvae import HVAE
from ..progress import Progress, Stage
from ..prune.cutoffs import Cutoff, CutoffSpec, fitting, tolerated_cutoff
from ..prune.kl_stats import KLStats
from ..prune.mask import LatentMask
from ..prune.sweep import sweep
from ..prune.tolerance import Tolerated, find_tolerated


@dataclass(frozen=True)
class CutoffCost:
    """Mean NELBO of the same images with the kept latents and with all, bits/dim."""

    kept: float
    everything: float
    change_se: float  # standard error of the paired difference
    images: int
    held_out: bool | None  # whether training leaves them out; None if that is not known


@dataclass(frozen=True)
class ChosenCutoff:
    """A cutoff, how it was found, and what it costs."""

    cutoff: Cutoff
    tolerated: Tolerated | None = None  # the search for a tolerance; None if none was asked for
    cost: CutoffCost | None = None  # None if it was not measured


def choose_cutoff(
    spec: CutoffSpec,
    model: HVAE,
    stats: KLStats,
    images: ImageSource,
    *,
    batch_size: int | None,
    seed: int,
    stage: Stage,
    engine: Engine | None = None,
    device: str | None = None,
    tally: Tally | None = None,
) -> ChosenCutoff:
    """Choose the cutoff that `spec` asks for; if that is a tolerance, search for it on `images`."""
    cutoff = fitting([spec], model)[-1].cutoff(model, stats)
    if cutoff is not None:
        return ChosenCutoff(cutoff)
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "seed": seed,
        "engine": engine,
        "device": device,
        "tally": tally,
    }
    tolerance, progress = spec.tolerance or 0.0, stage("Looking for the cutoff")
    found = find_tolerated(model, images, stats, tolerance, granularity=spec.granularity, progress=progress, **options)
    return ChosenCutoff(tolerated_cutoff(found), found)


def choose_and_measure(
    spec: CutoffSpec,
    model: HVAE,
    stats: KLStats,
    held_out: ImageSource,
    *,
    batch_size: int | None,
    seed: int,
    stage: Stage,
    images: int | None = SAMPLE_IMAGES,
    engine: Engine | None = None,
    device: str | None = None,
    tally: Tally | None = None,
) -> ChosenCutoff:
    """Choose the cutoff that `spec` asks for, and measure its cost on the `held_out` images, on `engine` as `kl_stats`.

    These are at most `images`: all if that is None; if it is 0, no cost is measured.
    """
    sample = held_out.evenly(SAMPLE_IMAGES)
    work: dict[str, Any] = {"engine": engine, "device": device, "tally": tally}
    chosen = choose_cutoff(spec, model, stats, sample, batch_size=batch_size, seed=seed, stage=stage, **work)
    if images == 0:
        return chosen
    measured, progress = held_out if images is None else held_out.evenly(images), stage("NELBO at this cutoff")
    return replace(
        chosen, cost=cutoff_cost(model, measured, stats, chosen.cutoff.mask, batch_size, seed, progress, **work)
    )


def cutoff_cost(
    model: HVAE,
    images: ImageSource,
    stats: KLStats,
    mask: LatentMask,
    batch_size: int | None,
    seed: int,
    progress: Progress,
    **work: Any,
) -> CutoffCost:
    """Measure the NELBO of `images` with `mask` and without pruning; `work` is further arguments of `sweep`."""
    masks = [mask, LatentMask.everything(stats)]
    kept, dense = sweep(model, images, masks, batch_size=batch_size, seed=seed, progress=progress, **work)
    _, error = kept.change_from(dense)
    return CutoffCost(kept.nelbo.mean(), dense.nelbo.mean(), error, len(images), images.held_out)
