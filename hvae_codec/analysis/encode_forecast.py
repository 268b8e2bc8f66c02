"""The whole of encode without a store: ranking, cutoff and its cost on a few images, and what all would take."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from ..data.sources import ImageSource
from ..data.training_and_held_out import TrainingAndHeldOut
from ..encode.forecast import SAMPLE, EncodeForecast, forecast_encoding
from ..encode.pipeline import SAMPLE_IMAGES, EncodeOptions, plan_store
from ..model.hvae import HVAE
from ..progress import Stage
from ..prune.cutoffs import CutoffSpec
from ..prune.kl_stats import KLStats, kl_stats
from ..store.quantiser import Codec
from .cutoff_cost import ChosenCutoff, choose_cutoff, cutoff_cost, with_codec
from .ranking_file import stored_ranking
from .step_choice import AutoStep
from .step_search import STEP_IMAGES


@dataclass(frozen=True, kw_only=True)
class EncodeOutlook:
    """What an encode will find and take."""

    forecast: EncodeForecast
    chosen: ChosenCutoff  # its cost is of a few held-out images
    ranked_on: int  # images of the ranking used here
    ranking_seconds: float  # that a ranking will take first; 0 if the run has one
    cost_seconds: float  # that the searches for a tolerance and a step, and their cost, will take first

    @property
    def seconds(self) -> float:
        """Seconds of all."""
        return self.ranking_seconds + self.cost_seconds + self.forecast.seconds


def outlook_on_encode(
    model: HVAE,
    images: TrainingAndHeldOut,
    wanted: ImageSource,
    spec: CutoffSpec,
    codec: Codec | AutoStep,
    options: EncodeOptions,
    evaluated: int | None,
    stage: Stage,
) -> EncodeOutlook:
    """Tell what encoding `wanted`, a part of `images`, will take; each piece is tried on up to 64 images.

    `evaluated`: held-out images that the cutoff's cost will be measured on; None for all. Nothing is written, not even
    a ranking. Raises what encoding does before it writes.
    """
    stats, ranking_seconds = _ranking(model, images, options, stage)
    chosen, cost_seconds = _cutoff(model, images, spec, codec, stats, options, evaluated, stage)
    assert chosen.codec is not None
    planned: Any = {"mask": chosen.cutoff.mask, "codec": chosen.codec.codec, "stats": stats, "options": options}
    encoder, store = plan_store(model, wanted, **planned)
    return EncodeOutlook(
        forecast=forecast_encoding(encoder, store, progress=stage("Encoding some")),
        chosen=chosen,
        ranked_on=stats.images,
        ranking_seconds=ranking_seconds,
        cost_seconds=cost_seconds,
    )


def _ranking(model: HVAE, images: TrainingAndHeldOut, options: EncodeOptions, stage: Stage) -> tuple[KLStats, float]:
    """Read the run's ranking, or measure one on a few images; and how long one of all its images takes."""
    stored = stored_ranking(model)
    if stored is not None:
        return stored, 0.0
    training, start = images.training, time.perf_counter()
    sample, progress = training.evenly(SAMPLE), stage("Ranking by KL, on some")
    stats = kl_stats(model, sample, batch_size=options.batch_size, seed=options.seed, progress=progress)
    return stats, _scaled(time.perf_counter() - start, len(sample), min(SAMPLE_IMAGES, len(training)))


def _cutoff(
    model: HVAE,
    images: TrainingAndHeldOut,
    spec: CutoffSpec,
    codec: Codec | AutoStep,
    stats: KLStats,
    options: EncodeOptions,
    evaluated: int | None,
    stage: Stage,
) -> tuple[ChosenCutoff, float]:
    """Choose cutoff and step and measure their cost on a few images; and how long that takes on all asked for."""
    held_out = images.held_out
    work: dict[str, Any] = {"batch_size": options.batch_size, "seed": options.seed}
    sample, start = held_out.evenly(SAMPLE), time.perf_counter()
    chosen = choose_cutoff(spec, model, stats, sample, stage=stage, **work)
    searched = time.perf_counter() - start if spec.tolerance is not None else 0.0
    seconds = _scaled(searched, len(sample), min(SAMPLE_IMAGES, len(held_out)))
    start = time.perf_counter()
    chosen = with_codec(chosen, codec, model, stats, held_out, stage=stage, keep=False, at_most=SAMPLE, **work)
    if chosen.codec is not None and chosen.codec.is_new:
        seconds += _scaled(time.perf_counter() - start, len(sample), min(STEP_IMAGES, len(held_out)))
    if evaluated == 0:
        return chosen, seconds
    sample, start = sample.evenly(len(sample) if evaluated is None else evaluated), time.perf_counter()
    cost = cutoff_cost(model, sample, stats, chosen, packing=options.packing, progress=stage("Cost, on some"), **work)
    wanted = len(held_out) if evaluated is None else min(evaluated, len(held_out))
    return replace(chosen, cost=cost), seconds + _scaled(time.perf_counter() - start, len(sample), wanted)


def _scaled(seconds: float, measured: int, images: int) -> float:
    return seconds * images / measured
