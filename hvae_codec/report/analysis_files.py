"""From images to all that analyze-kl leaves on disk: what is measured in which order, and the files made of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..encode.latents import Codec
from ..errors import UsageError
from ..images import ImageSource
from ..model.hvae import HVAE
from ..processes import Processes
from ..prune.cutoffs import Cutoff, CutoffWish
from ..prune.kl_stats import save_kl_stats
from ..prune.mask import LatentMask, save_mask
from .analysis import Analysis, Stage, analyze, rank, ranking_path
from .cutoff_cost import best_sentence, chosen_cutoff
from .groups import save_groups
from .page import save_page
from .plots import save_cutoff_curve, save_reconstruction_sheet
from .tables import save_table

MASKS_FOLDER = "masks"


@dataclass(frozen=True)
class AnalysisPlan:
    """What to measure, and how."""

    wishes: Sequence[CutoffWish]
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
    masks: Sequence[tuple[str, LatentMask]]
    """What was asked for, and the mask."""
    about: dict[str, Any]
    """How it was measured, plain data."""
    sentences: Sequence[str]
    image_dims: int


def measure(
    model: HVAE, source: ImageSource, plan: AnalysisPlan, stage: Stage, processes: Processes | None = None
) -> Measured:
    """Rank variates on the training images of `source`, and measure each cutoff on those held out.

    Raises `DataError` where there are no images or they do not fit, and what `chosen_cutoff` raises.
    """
    held_out = source.split("val").evenly(plan.images)
    stats = rank(model, source.split("train"), plan.images, plan.batch_size, plan.seed, stage, processes)
    common: dict[str, Any] = {"batch_size": plan.batch_size, "seed": plan.seed, "processes": processes}
    chosen = [chosen_cutoff(wish, model, stats, held_out, stage=stage, **common) for wish in plan.wishes]
    cutoffs = [cutoff for cutoff, _ in chosen]
    progress = stage("Every cutoff")
    analysis = analyze(model, stats, held_out, cutoffs, plan.codec, pictures=plan.pictures, progress=progress, **common)
    about = {
        "images": len(held_out),
        "pictures": min(plan.pictures, len(held_out)),
        "source": held_out.fingerprint,
        "ranking_images": stats.images,
        "ranking_source": stats.source,
        "codec": plan.codec.to_dict(),
        "seed": plan.seed,
        "model_hash": stats.model_hash,
        "granularity": plan.wishes[0].granularity,
        "count": plan.wishes[0].count,
        "chosen": _chosen(cutoffs, analysis),
    }
    sentences = [*(sentence for _, sentence in chosen if sentence), best_sentence(analysis.table)]
    masks = [(cutoff.rule, cutoff.mask) for cutoff in cutoffs]
    return Measured(analysis, masks, about, sentences, model.config.image_dims)


def _chosen(cutoffs: Sequence[Cutoff], analysis: Analysis) -> int | None:
    """The table's row of a tolerance, which is what its user came for; None where there is none."""
    rules = analysis.table["rule"].tolist()
    return next((rules.index(cutoff.rule) for cutoff in cutoffs if cutoff.rule.startswith("tolerance")), None)


def save_measured(measured: Measured, folder: Path, run: Path) -> dict[str, Path]:
    """Write page, tables, pictures and masks into `folder` and the ranking into `run`; what is where, by name."""
    analysis, about = measured.analysis, measured.about
    save_kl_stats(ranking_path(run), analysis.stats)
    save_table(folder, analysis.table, about)
    save_groups(folder, analysis.stats, measured.image_dims, about)
    for rule, mask in measured.masks:
        save_mask(folder / MASKS_FOLDER / f"{_file_name(rule)}.json", mask)
    save_cutoff_curve(folder, analysis.table)
    labels = analysis.table["rule"].tolist()
    save_reconstruction_sheet(folder, analysis.originals, analysis.decoded, labels)
    page = save_page(folder, analysis, about, measured.sentences)
    return {"Page": page, "Tables, pictures, masks": folder, "Ranking, for encode": ranking_path(run)}


def _file_name(rule: str) -> str:
    """A rule as the name of a file.

    >>> [_file_name(rule) for rule in ("keep 3%", "cutoff 0.01 bits", "mine.json")]
    ['keep-3', 'cutoff-0.01-bits', 'mine']
    """
    return re.sub(r"[^\w.]+", "-", rule.removesuffix(".json")).strip("-")
