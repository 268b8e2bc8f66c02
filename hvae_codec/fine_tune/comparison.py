"""What pruning and fine-tuning made of a model, on held-out images: before, after and, if there is one, the control."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from ..analysis.cutoff_table import Analysis, analyze
from ..analysis.plan import AnalysisPlan, AnalysisResult, run_analysis
from ..data.training_and_held_out import TrainingAndHeldOut
from ..model.checkpoint import load_model
from ..model.hvae import HVAE
from ..progress import Stage
from ..prune.cutoffs import Cutoff, CutoffSpec
from ..prune.kl_stats import KLStats
from ..prune.mask import LatentMask
from ..prune.sweep import SweepRow
from ..store.quantiser import IntCodec
from .plan import PrunePlan
from .prune import PrunedRun
from .pruned_model import Flags, left_of
from .unpruned import load_unpruned, ranking_of

COLUMNS = {
    "model": "before, control (trained for as long without a mask) or after",
    "kept": "what is kept: all latents, or those that the pruned run has",
    "kept_dims": "latent dimensions kept",
    "dims": "latent dimensions of the unpruned model",
    "nelbo": "negative ELBO, bits/dim; with codes, their length in place of the KL",
    "nelbo_change": "mean difference of the NELBO from the reference, image by image, bits/dim",
    "nelbo_change_se": "standard error of that difference, bits/dim",
    "rate": "KL or length of the codes, bits/dim",
    "distortion": "-log p(x given z), bits/dim",
    "psnr": "of the images encoded and decoded, from their mean squared error, dB",
    "ssim": "of the images encoded and decoded, mean",
    "bytes": "compressed latents, bytes per image",
}

ALL, LEFT = "all latents", "what is left"


@dataclass(frozen=True)
class Comparison:
    """The table, and how it was measured."""

    table: pd.DataFrame  # `COLUMNS` says what is in it; the reference is the last row of all latents
    about: dict[str, Any]  # plain data
    after: AnalysisResult  # of the pruned run


def compare(
    pruned: PrunedRun, images: TrainingAndHeldOut, plan: PrunePlan, stage: Stage, device: str = "cpu"
) -> Comparison:
    """Measure the unpruned model, the control and the pruned run on held-out images, with steps of 1.

    Differences are from the control with all latents or, without a control, from the unpruned model. The unpruned
    model and the control see the same noise; a slim model has other groups, and only the images in common.
    """
    models = {"before": load_unpruned(pruned.unpruned, pruned.kept_hash, device)}
    if pruned.control is not None:
        models["control"] = load_model(pruned.control, device)
    analyses = {name: _of_whole(name, model, pruned, images, plan, stage) for name, model in models.items()}
    learned = [name for name, each in models.items() if each.config.learned_steps]
    model = load_model(pruned.run, device)
    after = run_analysis(model, images, _plan_of_all_left(plan), stage)
    assert model.pruning is not None
    about = {
        **{key: after.about[key] for key in ("images", "held_out", "pictures", "source", "seed", "model_hash")},
        "rule": pruned.rule,
        "collapse": model.pruning.collapse,
        "codes": plan.codes,
        "learned_steps": [*learned, *(["after"] if model.config.learned_steps else [])],  # the others' step is 1
        "reference": "control" if pruned.control else "before",
    }
    return Comparison(_table(analyses | {"after": after.analysis}), about, after)


def _of_whole(
    name: str, model: HVAE, pruned: PrunedRun, images: TrainingAndHeldOut, plan: PrunePlan, stage: Stage
) -> Analysis:
    """Measure a whole model with what the pruned run has left, and with all latents."""
    stats = ranking_of(model, images, plan, stage)
    left, everything = _left(stats, left_of(model, pruned.kept)), _everything(stats)
    return analyze(
        model,
        stats,
        images.held_out.evenly(plan.images),
        [everything] if left.mask.keeps_the_same(everything.mask) else [left, everything],
        IntCodec(),
        batch_size=plan.batch_size,
        seed=plan.seed,
        pictures=plan.pictures,
        progress=stage(f"Measuring {name}"),
    )


def _plan_of_all_left(plan: PrunePlan) -> AnalysisPlan:
    return AnalysisPlan(
        cutoffs=[CutoffSpec()],
        codec=IntCodec(),
        images=plan.images,
        pictures=plan.pictures,
        batch_size=plan.batch_size,
        seed=plan.seed,
    )


def _everything(stats: KLStats) -> Cutoff:
    mask = LatentMask.everything(stats)
    return Cutoff(ALL, mask.kept_share, mask)


def _left(stats: KLStats, keep: Flags) -> Cutoff:
    """Make the cutoff that keeps what the pruned run has left."""
    mask = replace(LatentMask.everything(stats), keep=tuple(keep))
    return Cutoff(LEFT, mask.kept_share, mask)


def _table(analyses: dict[str, Analysis]) -> pd.DataFrame:
    reference = analyses["control" if "control" in analyses else "before"].rows[-1]
    rows = []
    for name, analysis in analyses.items():
        for measured, row in zip(analysis.table.to_dict(orient="records"), analysis.rows, strict=True):
            kept = LEFT if name == "after" else measured["rule"]
            rows.append(_row(name, kept, measured, row, reference))
    return pd.DataFrame(rows)


def _row(name: str, kept: str, measured: dict[Any, Any], row: SweepRow, reference: SweepRow) -> dict[str, Any]:
    change, error = row.change_from(reference)
    return {
        "model": name,
        "kept": kept,
        "kept_dims": measured["kept_dims"],
        "dims": measured["dims"],
        "nelbo": measured["nelbo"],
        "nelbo_change": change,
        "nelbo_change_se": error,
        "rate": measured["kl"],
        "distortion": measured["reconstruction"],
        **{key: measured[key] for key in ("psnr", "ssim", "bytes")},
    }
