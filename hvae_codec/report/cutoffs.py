"""The cutoff table: for the terminal, and the same figures as CSV and JSON for scripts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from rich.table import Table

from ..errors import ModelError
from ..storage.files import write_atomically
from .splits import count_images

TABLE_NAME = "cutoffs"

Row = Mapping[str, Any]
"""A row of the cutoff table; `cutoff_table.COLUMNS` says what is in it."""


class Column(NamedTuple):
    """How a figure of the table is shown."""

    format: str
    heading: str
    unit: str
    terminal: str = ""  # its heading in the terminal; empty if it is not shown there


COLUMNS = {
    "kept_dims": Column(",", "dims", "an image", "dims"),
    "kept_variates": Column(",", "variates", ""),
    "cutoff": Column(".3g", "KL cutoff", "bits/latent"),
    "nelbo": Column(".3f", "NELBO", "bits/dim", "NELBO"),
    "nelbo_nats": Column(".2f", "NELBO", "nats", "NELBO\nnats"),
    "reconstruction": Column(".3f", "recon.", "bits/dim"),
    "kl": Column(".3f", "KL", "bits/dim"),
    "nelbo_change": Column("+.5f", "NELBO change ± SE", "bits/dim", "NELBO change"),
    "step": Column("g", "step", "", "step"),
    "psnr": Column(".2f", "PSNR", "dB", "PSNR\ndB"),
    "ssim": Column(".3f", "SSIM", ""),
    "bytes": Column(",.0f", "stored", "bytes/image", "bytes"),
    "bits_per_dim": Column(".3f", "stored", "bits/dim", "stored"),
    "closed_loop": Column(".3f", "distortion, decoded", "bits/dim", "dist."),
    "description_length": Column(".3f", "stored + distortion", "bits/dim", "total"),
}
"""Figures that the page shows, in its order, if the table has them."""


_ERRORS = ("nelbo_change_se", "closed_loop_change_se")


def save_table(folder: Path, table: pd.DataFrame, about: Mapping[str, Any]) -> None:
    """Write `cutoffs.json` with `about` beside the rows, by which an analysis is known, and `cutoffs.csv`."""
    save_json_and_csv(folder / TABLE_NAME, {"about": dict(about), "cutoffs": plain_rows(table)}, table)


def save_json_and_csv(path: Path, document: Mapping[str, Any], table: pd.DataFrame) -> None:
    """Write `document` to `path` with the ending .json, and `table` with .csv, each atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path.with_suffix(".json"), json.dumps(document, indent=2).encode() + b"\n")
    write_atomically(path.with_suffix(".csv"), table.to_csv(index=False).encode())


def plain_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as plain data for JSON, with None for NaN."""
    return [{str(k): None if v != v else v for k, v in row.items()} for row in table.to_dict(orient="records")]


def load_table(folder: Path) -> tuple[pd.DataFrame, dict[str, Any]] | None:
    """Read the cutoff table that `save_table` wrote, and its `about`; None if there is none."""
    path = folder / f"{TABLE_NAME}.json"
    if not path.exists():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not document["cutoffs"]:
            raise ValueError("no rows")
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"cannot read {path} ({error}); make it again with hvae-codec analyze-kl") from None
    # JSON has no NaN: the standard errors of a single image's changes are null.
    table = pd.DataFrame(document["cutoffs"])
    errors = [name for name in _ERRORS if name in table or name == "nelbo_change_se"]
    table = table.astype(dict.fromkeys(errors, float))
    if table.drop(columns=errors).isna().to_numpy().any():
        raise ModelError(f"{path} lacks figures; make it again with hvae-codec analyze-kl")
    return table, document["about"]


def cutoff_table(table: pd.DataFrame, about: Mapping[str, Any]) -> Table:
    """Make the cutoff table (paper, table 5) for the terminal: what one chooses by, not the bound's terms."""
    images = count_images(about["images"], about.get("held_out", True))
    title = f"{images}, variates ranked on {about['ranking_images']:,}"
    caption = "stored + dist. (distortion of decoded images) = total, and NELBO: bits/dim"
    caption += "\n± is the standard error of a paired difference"
    pictures = about.get("pictures", about["images"])
    if pictures < about["images"]:
        caption += f"\nPSNR, bytes and stored are of {pictures:,} of the images"
    rich = Table(title=title, caption=caption)
    shown = [name for name, column in COLUMNS.items() if name in table and column.terminal]
    shown.sort(key=lambda name: name == "nelbo_nats")  # last, as few tables have it
    for heading in ("", *(COLUMNS[name].terminal for name in shown)):
        rich.add_column(heading, justify="right")
    rows: list[dict[Any, Any]] = table.to_dict(orient="records")
    for row in rows:
        rich.add_row(row.get("rule", f"keep {100 * row['keep']:g}%"), *(cell(row, name) for name in shown))
    return rich


def cell(row: Row, name: str) -> str:
    """Write the figure `name` of a row."""
    return change_text(row) if name == "nelbo_change" else format(row[name], COLUMNS[name].format)


def change_text(row: Row) -> str:
    """Write the paired change of the NELBO and its standard error, bits/dim.

    >>> change_text({"nelbo_change": 0.0157, "nelbo_change_se": 0.0009})
    '+0.01570 ± 0.00090'
    """
    change, error = row["nelbo_change"], row["nelbo_change_se"]
    if change == 0:
        return "–"
    return f"{change:+.5f}" if math.isnan(error) else f"{change:+.5f} ± {error:.5f}"


def percent(share: float) -> str:
    """Write a share, 0 to 1, with three significant digits.

    >>> percent(0.03), percent(0.025791), percent(1.0)
    ('3%', '2.58%', '100%')
    """
    return f"{100 * share:.3g}%"
