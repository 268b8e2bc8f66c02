"""What evaluate found: the table for the terminal, JSON, and the figures of every image as CSV."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from ..analysis.evaluation import Evaluation, Figure
from ..errors import DataError
from ..storage.files import write_atomically
from ..storage.new_folder import check_above
from ..train.metrics import ACTIVE_NATS
from .counts import count
from .splits import count_images

LABELS = {
    "nelbo": "NELBO",
    "rate": "rate (KL)",
    "distortion": "distortion",
    "importance_bound": "importance-weighted bound",
    "importance_bound_change": "  change from the NELBO",
    "nelbo_exact_bins": "NELBO, exact bins",
    "nelbo_published_bins": "NELBO, published bins",
    "bins_change": "  change by published bins",
    "psnr": "PSNR",
    "ssim": "SSIM",
}
"""Each figure's name in the table, in its order."""


def evaluation_table(evaluation: Evaluation) -> Table:
    """Make the table for the terminal."""
    figures, samples = evaluation.figures, evaluation.samples
    active = f"{evaluation.active_groups} of {len(evaluation.kl_nats)}"
    table = Table(
        title=f"{count_images(len(evaluation.images), evaluation.held_out)}, {count(samples, 'posterior sample')} each",
        caption=f"± is the standard error over images\nactive latent groups (KL above {ACTIVE_NATS:g} nats): {active}",
    )
    table.add_column("")
    nats = any(name.endswith("_nats") for name in figures)
    for heading in ("mean", "±", "unit", *(("nats", "±") if nats else ())):
        table.add_column(heading, justify="left" if heading == "unit" else "right")
    for name, label in LABELS.items():
        if name in figures:
            sign, unit = "+" if name.endswith("_change") else "", figures[name].unit
            in_nats = _cells(figures[f"{name}_nats"], sign, 2) if f"{name}_nats" in figures else ()
            table.add_row(label, *_cells(figures[name], sign, 2 if unit == "dB" else 4), unit, *in_nats)
    return table


def _cells(figure: Figure, sign: str, digits: int) -> tuple[str, str]:
    error = "-" if math.isnan(figure.standard_error) else f"{figure.standard_error:.{digits}f}"
    return f"{figure.mean:{sign}.{digits}f}", error


def evaluation_data(evaluation: Evaluation, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures as plain data for JSON, after `about`; None for a standard error that does not exist."""
    figures = {name: dataclasses.asdict(figure) for name, figure in evaluation.figures.items()}
    for figure in figures.values():
        figure["standard_error"] = None if math.isnan(figure["standard_error"]) else figure["standard_error"]
    header = {
        "images": len(evaluation.images),
        "held_out": evaluation.held_out,
        "samples": evaluation.samples,
        "model_hash": evaluation.model_hash,
    }
    kl = evaluation.kl_nats.tolist()
    groups = {"active": evaluation.active_groups, "active_above_nats": ACTIVE_NATS, "kl_nats": kl}
    return {"about": dict(about) | header, "figures": figures, "groups": groups}


def check_image_csv(path: Path, *, overwrite: bool = False) -> None:
    """Raise `DataError` if `save_image_csv` cannot or must not write to `path`."""
    check_above(path)
    if path.is_dir():
        raise DataError(f"{path} is a folder; give the name of a file, such as evaluation.csv")
    if path.exists() and not overwrite:
        raise DataError(f"{path} exists; give another name or pass --overwrite")


def save_image_csv(path: Path, evaluation: Evaluation) -> None:
    """Write the figures of every image as CSV, one row per image."""
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, evaluation.images.to_csv(index=False).encode())
