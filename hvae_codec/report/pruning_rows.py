"""The rows of what prune made of a model, as the terminal and the page show them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelError
from .cutoffs import change_text

PRUNING_NAME = "pruning"

HEADINGS = (
    "",
    "kept",
    "dims",
    "NELBO\nbits/dim",
    "change ± SE",
    "rate\nbits/dim",
    "distortion\nbits/dim",
    "PSNR\ndB",
    "SSIM",
    "bytes\nan image",
)


def reference(about: Mapping[str, Any]) -> str:
    """Name the row that differences are from."""
    return {"before": "before", "control": "the control"}[about["reference"]] + " with all latents"


def steps_note(about: Mapping[str, Any]) -> str:
    """Say at which steps the codes are whose bytes, PSNR and SSIM the table has.

    >>> steps_note({"reference": "control", "codes": True, "learned_steps": ["after"]})
    'PSNR, SSIM and bytes: before and control at a step of 1, after at learned steps'
    """
    models = ["before", *(["control"] if about["reference"] == "control" else []), "after"]
    learned = about.get("learned_steps", ["after"] if about["codes"] else [])  # tables of before lack it
    if not learned:
        return "PSNR, SSIM and bytes are at a step of 1"
    parts = {
        "a step of 1": [name for name in models if name not in learned],
        "learned steps": learned,
    }
    texts = [f"{' and '.join(names)} at {steps}" for steps, names in parts.items() if names]
    return f"PSNR, SSIM and bytes: {', '.join(texts)}"


def row_cells(row: Mapping[str, Any]) -> list[str]:
    """Write the figures of a row."""
    error = row["nelbo_change_se"]  # JSON has no NaN: that of a single image is null
    change = {**row, "nelbo_change_se": math.nan if error is None else error}
    return [
        row["model"],
        row["kept"],
        f"{row['kept_dims']:,}",
        f"{row['nelbo']:.3f}",
        change_text(change),
        f"{row['rate']:.3f}",
        f"{row['distortion']:.3f}",
        f"{row['psnr']:.2f}",
        f"{row['ssim']:.3f}",
        f"{row['bytes']:,.0f}",
    ]


def load_rows(folder: Path) -> dict[str, Any] | None:
    """Read the rows, and how they were measured (`about`), of the run whose analysis is in `folder`; None if none."""
    path = folder / f"{PRUNING_NAME}.json"
    if not path.exists():
        return None
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        document["cells"] = [row_cells(row) for row in document["rows"]]
        document["reference"] = reference(document["about"])
        document["steps"] = steps_note(document["about"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"cannot read {path} ({error!r}); make it again with hvae-codec prune") from None
    return document
