"""The files that analyze-kl writes: page, tables, pictures and masks, and the ranking into the run."""

from __future__ import annotations

import re
from pathlib import Path

from ..analysis.plan import AnalysisResult
from ..analysis.ranking_file import keep_ranking, ranking_path
from ..data.pixels import EXTENSIONS
from ..data.urls import data_path
from ..errors import DataError
from ..prune.mask import save_mask
from .cutoff_sentences import best_sentence, choice_sentence, kept_ranking_sentence
from .cutoffs import TABLE_NAME, save_table
from .groups import GROUPS_NAME, save_groups
from .page import PAGE_FILE, save_page
from .plots import CURVE_FILE, SHEET_FILE, save_cutoff_curve, save_reconstruction_sheet
from .splits import known_images_sentence
from .step_sentences import steps_sentences

MASKS_FOLDER = "masks"


def check_folder(folder: Path, *data: str | Path) -> None:
    """Raise `DataError` if an analysis cannot go to `folder`, or would overwrite what is not of an analysis.

    Nor may it go among the images at `data`: these are read without the folders of analyses below them.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is no folder; give another --out")
    ours = (PAGE_FILE, CURVE_FILE, SHEET_FILE, MASKS_FOLDER, f"{TABLE_NAME}.csv", f"{GROUPS_NAME}.csv")
    there = sorted(name for name in ours if (folder / name).exists())
    if (folder / f"{TABLE_NAME}.json").exists():
        return
    if there:
        raise DataError(f"{folder} holds {there[0]}, which is not of an analysis; give another --out")
    for images in map(data_path, data):
        if isinstance(images, Path) and folder.resolve().is_relative_to(images.resolve()) and _may_hold_images(folder):
            raise DataError(f"{folder} is a folder of the images {images}; give a new folder as --out")


def _may_hold_images(folder: Path) -> bool:
    return folder.exists() and any(x.is_dir() or x.name.lower().endswith(EXTENSIONS) for x in folder.iterdir())


def analysis_sentences(result: AnalysisResult) -> list[str]:
    """Say if no image was held out, how cutoffs and steps were chosen, and whether the best improves the bound."""
    best = best_sentence(result.analysis.table, result.about["images"])
    known = known_images_sentence(result.about["split"], result.about["held_out"])
    steps = steps_sentences(result.codecs, result.analysis.table["rule"].tolist())
    return [sentence for sentence in (known, *map(choice_sentence, result.chosen), *steps, best) if sentence]


def save_analysis(result: AnalysisResult, folder: Path, run: Path, *, overwrite: bool = False) -> dict[str, str]:
    """Write all files into `folder` and the ranking into `run`; returns where each is, by name.

    A ranking of more images that the run has stays unless `overwrite`, see `keep_ranking`.
    """
    analysis, about = result.analysis, result.about
    save_table(folder, analysis.table, about)
    save_groups(folder, analysis.stats, result.image_dims, about)
    for spec, chosen in zip(result.plan.cutoffs, result.chosen, strict=True):
        if spec.file is None:
            save_mask(folder / MASKS_FOLDER / f"{_file_name(chosen.cutoff.rule)}.json", chosen.cutoff.mask)
    save_cutoff_curve(folder, analysis.table)
    save_reconstruction_sheet(folder, analysis.originals, analysis.decoded, analysis.table["rule"].tolist())
    page = save_page(folder, analysis, about, analysis_sentences(result))
    ranking = kept_ranking_sentence(keep_ranking(ranking_path(run), analysis.stats, overwrite=overwrite))
    return {"Page": str(page), "Tables, pictures, masks": str(folder), "Ranking, for encode": ranking}


def _file_name(rule: str) -> str:
    """Make the name of a file from a rule.

    >>> [_file_name(rule) for rule in ("keep 3%", "cutoff 0.01 bits", "keep 3%, by position")]
    ['keep-3', 'cutoff-0.01-bits', 'keep-3-by-position']
    """
    return re.sub(r"[^\w.]+", "-", rule).strip("-")
