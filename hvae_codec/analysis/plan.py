"""The whole of analyze-kl: ranking, cutoffs, their table; what is measured in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..data.sources import ImageSource
from ..data.splits import Split
from ..data.training_and_held_out import TrainingAndHeldOut
from ..engine.engine import Engine
from ..engine.tally import Tally
from ..errors import UsageError
from ..model.hvae import HVAE
from ..progress import Stage
from ..prune.cutoffs import CutoffSpec, fitting, merge_equal
from ..prune.kl_stats import kl_stats
from ..store.compressors import ZSTD, packing_of
from ..store.quantiser import Codec, make_codec
from .cutoff_cost import ChosenCutoff, choose_cutoff
from .cutoff_table import Analysis, analyze
from .ranking_file import stored_ranking
from .step_choice import AutoStep, ChosenCodec, choose_codecs


@dataclass(frozen=True, kw_only=True)
class AnalysisPlan:
    """What to measure, and how."""

    cutoffs: Sequence[CutoffSpec]  # one at least
    codec: Codec | AutoStep  # or how its step is to be found, at each cutoff
    images: int  # at most, for the ranking and for the table each
    pictures: int  # images of the table, at most, that are also encoded, decoded and compared
    batch_size: int | None
    seed: int
    packing: str = ZSTD  # of the codes whose bytes are counted, see `EncodeOptions`
    split: Split = "val"  # what the table is of; of others than held-out images, the run's own ranking is taken

    def __post_init__(self) -> None:
        if not self.cutoffs:
            raise UsageError("no cutoff is asked for; give --keep, --cutoff, --tolerance or --mask")


@dataclass(frozen=True)
class AnalysisResult:
    """What was measured, and how."""

    analysis: Analysis
    chosen: Sequence[ChosenCutoff]  # one for each cutoff of the plan, in its order
    codecs: Sequence[ChosenCodec]  # one for each row of the table
    plan: AnalysisPlan
    about: dict[str, Any]  # how it was measured, plain data
    image_dims: int


def run_analysis(
    model: HVAE,
    images: TrainingAndHeldOut,
    plan: AnalysisPlan,
    stage: Stage,
    engine: Engine | None = None,
    device: str | None = None,
    tally: Tally | None = None,
) -> AnalysisResult:
    """Rank variates on the training images, and measure each cutoff on those held out, or on another split.

    For another split, the ranking that the model's run stores is taken, if there is one: images of one split alone,
    such as a file of test images, are then not ranked on. Tasks run on `engine`, or in this process; figures are the
    same to the last bit. Steps are looked for on held-out images, or those of the other split, and stored in the run
    if they are of held-out ones. Raises `DataError` if there are no images or they do not fit, and what `choose_cutoff`
    and `choose_codecs` raise.
    """
    measured = images.split(plan.split).evenly(plan.images)
    stored = None if plan.split == "val" else stored_ranking(model)
    plan = replace(plan, cutoffs=fitting(plan.cutoffs, model))
    for spec in plan.cutoffs:
        spec.check(model)
    common: dict[str, Any] = {
        "batch_size": plan.batch_size,
        "seed": plan.seed,
        "engine": engine,
        "device": device,
        "tally": tally,
    }
    stats = stored
    if stats is None:
        stats = kl_stats(model, images.training.evenly(plan.images), progress=stage("Ranking by KL"), **common)
    chosen = [choose_cutoff(spec, model, stats, measured, stage=stage, **common) for spec in plan.cutoffs]
    cutoffs = merge_equal([each.cutoff for each in chosen])
    masks, sought = [cutoff.mask for cutoff in cutoffs], images.held_out if plan.split == "val" else measured
    codecs = choose_codecs(plan.codec, model, masks, stats, sought, stage=stage, keep=plan.split == "val", **common)
    common |= {"packing": plan.packing, "pictures": plan.pictures, "progress": stage("Every cutoff")}
    analysis = analyze(model, stats, measured, cutoffs, [each.codec for each in codecs], **common)
    about = _about(plan, analysis, chosen, measured)
    return AnalysisResult(analysis, chosen, codecs, plan, about, model.config.image_dims)


def _about(
    plan: AnalysisPlan, analysis: Analysis, chosen: Sequence[ChosenCutoff], measured: ImageSource
) -> dict[str, Any]:
    granularities = {mask.granularity for mask in analysis.masks}
    tolerated = next((each.cutoff.mask for each in chosen if each.tolerated), None)
    same = [mask.keeps_the_same(tolerated) for mask in analysis.masks] if tolerated else []
    return {
        "images": len(measured),
        "held_out": measured.held_out,
        "split": plan.split,
        "pictures": min(plan.pictures, len(measured)),
        "source": measured.fingerprint,
        "ranking_images": analysis.stats.images,
        "ranking_source": analysis.stats.source,
        "codec": plan.codec.to_dict(),
        "packing": packing_of(make_codec(plan.codec.name).dtype, plan.packing),
        "seed": plan.seed,
        "model_hash": analysis.stats.model_hash,
        "granularity": granularities.pop() if len(granularities) == 1 else "variate and position",
        "count": plan.cutoffs[0].count,
        "chosen": same.index(True) if same else None,  # the row that the page shows first
    }
