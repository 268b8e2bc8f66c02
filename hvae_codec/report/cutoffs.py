"""The cutoff table: for the terminal, and the same figures as CSV and JSON for scripts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from ..errors import ModelError
from ..storage.files import write_atomically

TABLE_NAME = "cutoffs"


def save_table(folder: Path, table: pd.DataFrame, about: Mapping[str, Any]) -> None:
    """Write `cutoffs.json` with `about` beside the rows, by which an analysis is known, and `cutoffs.csv`."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {"about": dict(about), "cutoffs": plain_rows(table)}
    write_atomically(folder / f"{TABLE_NAME}.json", json.dumps(document, indent=2).encode() + b"\n")
    write_atomically(folder / f"{TABLE_NAME}.csv", table.to_csv(index=False).encode())


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
    # JSON has no NaN: the standard error of a single image's change is null.
    table = pd.DataFrame(document["cutoffs"]).astype({"nelbo_change_se": float})
    if table.drop(columns="nelbo_change_se").isna().to_numpy().any():
        raise ModelError(f"{path} lacks figures; make it again with hvae-codec analyze-kl")
    return table, document["about"]


def cutoff_table(table: pd.DataFrame, about: Mapping[str, Any]) -> Table:
    """Make the cutoff table (paper, table 5) for the terminal."""
    title = f"{about['images']:,} held-out images, variates ranked on {about['ranking_images']:,}"
    caption = "NELBO = reconstruction + KL; ± is the standard error of a paired difference"
    pictures = about.get("pictures", about["images"])
    if pictures < about["images"]:
        caption += f"\nPSNR, SSIM and bytes are of {pictures:,} of the images"
    rich = Table(title=title, caption=caption)
    for heading in ("", "dims", "NELBO\nbits/dim", "recon.\nbits/dim", "KL\nbits/dim", "NELBO change", "PSNR\ndB"):
        rich.add_column(heading, justify="right")
    for heading in ("SSIM", "bytes\nan image", "stored\nbits/dim"):
        rich.add_column(heading, justify="right")
    if "nelbo_nats" in table:
        rich.add_column("NELBO\nnats", justify="right")
    for row in table.to_dict(orient="records"):
        rich.add_row(*_cutoff_cells({str(key): value for key, value in row.items()}))
    return rich


def _cutoff_cells(row: Mapping[str, Any]) -> Iterable[str]:
    yield row.get("rule", f"keep {100 * row['keep']:g}%")
    yield f"{row['kept_dims']:,}"
    for key in ("nelbo", "reconstruction", "kl"):
        yield f"{row[key]:.3f}"
    error = "" if math.isnan(row["nelbo_change_se"]) else f" ± {row['nelbo_change_se']:.5f}"
    yield "–" if row["nelbo_change"] == 0 else f"{row['nelbo_change']:+.5f}{error}"
    yield f"{row['psnr']:.2f}"
    yield f"{row['ssim']:.3f}"
    yield f"{row['bytes']:,.0f}"
    yield f"{row['bits_per_dim']:.3f}"
    if "nelbo_nats" in row:
        yield f"{row['nelbo_nats']:.2f}"
