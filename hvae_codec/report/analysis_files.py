"""From images to all that analyze-kl leaves on disk: what is measured in which order, and the files made of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..analysis.cutoff_cost import best_sentence, chosen_cutoff
from ..analysis.cutoff_table import Analysis, analyze, rank, ranking_path
from ..data.sources import ImageSource
from ..distributed import DistributedContext
from ..errors import DataError, UsageError
from ..model.checkpoint import model_hash
from ..model.hvae import HVAE
from ..progress import Stage
from ..prune.cutoffs import Cutoff, CutoffSpec
from ..prune.mask import LatentMask, save_mask
from ..store.quantiser import Codec
from .encoded import keep_ranking
from .groups import GROUPS_NAME, save_groups
from .page import PAGE_FILE, save_page
from .plots import CURVE_FILE, SHEET_FILE, save_cutoff_curve, save_reconstruction_sheet
from .tables import TABLE_NAME, save_table

MASKS_FOLDER = "masks"


@dataclass(frozen=True)
class AnalysisPlan:
    """What to measure, and how."""

    wishes: Sequence[CutoffSpec]
    """The cutoffs, one at least."""
    codec: Codec
    images: int
    """At most, for the ranking and for the table each."""
    pictures: int
    """Images of the table, at most, that are also encoded, decoded and compared."""
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if not self.wishes:
            raise UsageError("no cutoff is asked for; give --keep, --cutoff, --tolerance or --mask")


@dataclass(frozen=True)
class Measured:
    """What was found, and what is to be said about it."""

    analysis: Analysis
    masks: Mapping[str, LatentMask]
    """What was asked for, and the mask made for it; not those that were given."""
    about: dict[str, Any]
    """How it was measured, plain data."""
    sentences: Sequence[str]
    image_dims: int


def check_folder(folder: Path) -> None:
    """Raise `DataError` where an analysis cannot go to `folder`, or would overwrite what is not of an analysis."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is no folder; give another --out")
    ours = {PAGE_FILE, CURVE_FILE, SHEET_FILE, MASKS_FOLDER, *(f"{name}.csv" for name in (TABLE_NAME, GROUPS_NAME))}
    there = sorted(name for name in ours if (folder / name).exists())
    if there and not (folder / f"{TABLE_NAME}.json").exists():
        raise DataError(f"{folder} holds {there[0]}, which is not of an analysis; give another --out")


def measure(
    model: HVAE, source: ImageSource, plan: AnalysisPlan, stage: Stage, processes: DistributedContext | None = None
) -> Measured:
    """Rank variates on the training images of `source`, and measure each cutoff on those held out.

    Raises `DataError` where there are no images or they do not fit, `UsageError` where `processes` have different
    images or models, and what `chosen_cutoff` raises.
    """
    held_out, training = source.split("val").evenly(plan.images), source.split("train")
    _check_same_inputs(model, held_out, training, processes or DistributedContext())
    for wish in plan.wishes:
        wish.check(model)
    stats = rank(model, training, plan.images, plan.batch_size, plan.seed, stage, processes)
    common: dict[str, Any] = {"batch_size": plan.batch_size, "seed": plan.seed, "processes": processes}
    chosen = [chosen_cutoff(wish, model, stats, held_out, stage=stage, **common) for wish in plan.wishes]
    cutoffs = [cutoff for cutoff, _ in chosen]
    progress = stage("Every cutoff")
    analysis = analyze(model, stats, held_out, cutoffs, plan.codec, pictures=plan.pictures, progress=progress, **common)
    about = _about(plan, analysis, held_out) | {"chosen": _chosen(plan, cutoffs, analysis)}
    sentences = [*(sentence for _, sentence in chosen), best_sentence(analysis.table, len(held_out))]
    made = zip(plan.wishes, cutoffs, strict=True)
    masks = {cutoff.rule: cutoff.mask for wish, cutoff in made if wish.file is None}
    return Measured(analysis, masks, about, [s for s in sentences if s], model.config.image_dims)


def _check_same_inputs(
    model: HVAE, held_out: ImageSource, training: ImageSource, processes: DistributedContext
) -> None:
    if processes.world_size == 1:
        return
    own = (held_out.fingerprint, training.fingerprint, model_hash(model))
    if own != processes.run_on_main(lambda: own):
        raise UsageError("this process sees other images or another model than the first one; give all the same")


def _about(plan: AnalysisPlan, analysis: Analysis, held_out: ImageSource) -> dict[str, Any]:
    granularities = {mask.granularity for mask in analysis.masks}
    return {
        "images": len(held_out),
        "pictures": min(plan.pictures, len(held_out)),
        "source": held_out.fingerprint,
        "ranking_images": analysis.stats.images,
        "ranking_source": analysis.stats.source,
        "codec": plan.codec.to_dict(),
        "seed": plan.seed,
        "model_hash": analysis.stats.model_hash,
        "granularity": granularities.pop() if len(granularities) == 1 else "variate and position",
        "count": plan.wishes[0].count,
    }


def _chosen(plan: AnalysisPlan, cutoffs: Sequence[Cutoff], analysis: Analysis) -> int | None:
    """The table's row of a tolerance, which is what its user came for; None where there is none."""
    rules = analysis.table["rule"].tolist()
    found = (cutoff for wish, cutoff in zip(plan.wishes, cutoffs, strict=True) if wish.tolerance is not None)
    return next((rules.index(cutoff.rule) for cutoff in found), None)


def save_measured(measured: Measured, folder: Path, run: Path) -> dict[str, str]:
    """Write page, tables, pictures and masks into `folder` and the ranking into `run`; what is where, by name."""
    analysis, about = measured.analysis, measured.about
    save_table(folder, analysis.table, about)
    save_groups(folder, analysis.stats, measured.image_dims, about)
    for rule, mask in measured.masks.items():
        save_mask(folder / MASKS_FOLDER / f"{_file_name(rule)}.json", mask)
    save_cutoff_curve(folder, analysis.table)
    labels = analysis.table["rule"].tolist()
    save_reconstruction_sheet(folder, analysis.originals, analysis.decoded, labels)
    page = save_page(folder, analysis, about, measured.sentences)
    kept = keep_ranking(ranking_path(run), analysis.stats)
    return {"Page": str(page), "Tables, pictures, masks": str(folder), "Ranking, for encode": kept}


def _file_name(rule: str) -> str:
    """A rule as the name of a file.

    >>> [_file_name(rule) for rule in ("keep 3%", "cutoff 0.01 bits", "keep 3%, by position")]
    ['keep-3', 'cutoff-0.01-bits', 'keep-3-by-position']
    """
    return re.sub(r"[^\w.]+", "-", rule).strip("-")
