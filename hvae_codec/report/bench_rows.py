"""The rows of what bench measured, as the terminal and the page show them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import ModelError
from .counts import count
from .splits import count_images

BENCH_NAME = "bench"

Row = Mapping[str, Any]

HEADINGS = (
    "",
    "setting",
    "payload\nbytes",
    "on disk\nbytes",
    "payload\nbits/dim",
    "on disk\nbits/dim",
    "PSNR\ndB",
    "SSIM",
    "encoded\nimages/s",
    "decoded\nimages/s",
)


def row_cells(row: Row) -> list[str]:
    """Write the figures of a row, in the order of `HEADINGS`; a dash for one that there is not."""
    figures = {"payload_bytes": ".0f", "bytes": ".0f", "payload_bits_per_dim": ".3f", "bits_per_dim": ".3f"}
    speeds = [_speed(row[name]) for name in ("encode_per_second", "decode_per_second")]
    quality = "exact" if row["exact"] else f"{row['psnr']:.2f}"
    sizes = [_cell(row[name], f",{form}") for name, form in figures.items()]
    return [row["method"], row["setting"], *sizes, quality, f"{row['ssim']:.3f}", *speeds]


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None or math.isnan(value) else format(value, form)


def _speed(value: float | None) -> str:
    return _cell(value, ",.0f" if value is not None and value >= 10 else ",.2f")


def shape_text(about: Mapping[str, Any]) -> str:
    """Write size, colour and bits of the images.

    >>> shape_text({"size": 28, "channels": 1, "bits": 1})
    '28 × 28, grey, 1 bit'
    """
    size, colour = about["size"], "grey" if about["channels"] == 1 else "RGB"
    return f"{size} × {size}, {colour}, {count(about['bits'], 'bit')}"


def load_bench(folder: Path, model_hash: str | None) -> dict[str, Any] | None:
    """Read what the page shows of a bench in `folder`; None if there is none, or one of another model."""
    path = folder / f"{BENCH_NAME}.json"
    if not path.exists():
        return None
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return page_content(document) if document["about"]["model_hash"] == model_hash else None
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"cannot read {path} ({error!r}); make it again with hvae-codec bench") from None


def page_content(document: Mapping[str, Any]) -> dict[str, Any]:
    """Collect what the page's section shows."""
    rows, about = document["rows"], document["about"]
    return {
        "images": f"{count_images(about['images'], about['held_out'])}, {shape_text(about)}",
        "sentences": document["sentences"],
        "headings": HEADINGS,
        "rows": [row_cells(row) for row in rows],
        "table": pd.DataFrame(rows),
    }
