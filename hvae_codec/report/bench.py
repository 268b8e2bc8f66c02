"""What bench measured: the table for the terminal, sentences, and files; CSV and JSON for scripts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ..analysis.bench import Bench
from ..data.pixels import EXTENSIONS
from ..data.urls import data_path
from ..errors import DataError
from .bench_page import put_into_page
from .bench_plot import PLOT_FILE, save_rate_curves
from .bench_rows import BENCH_NAME, HEADINGS, Row, page_content, row_cells, shape_text
from .counts import count
from .cutoffs import load_table, plain_rows, save_json_and_csv
from .page import PAGE_FILE
from .splits import count_images


def bench_table(found: Bench) -> Table:
    """Make the table for the terminal."""
    about = found.about
    caption = "per image; payload: without what a file of one grey pixel takes; of a store, its latents alone"
    table = Table(title=f"{count_images(about['images'], about['held_out'])}, {shape_text(about)}", caption=caption)
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in HEADINGS[:2] else "right")
    rows, kinds = plain_rows(found.table), found.table["kind"].tolist()
    for row, kind, following in zip(rows, kinds, [*kinds[1:], kinds[-1]], strict=True):
        table.add_row(*row_cells(row), end_section=kind != following)
    return table


def bench_sentences(rows: Sequence[Row], about: Mapping[str, Any]) -> list[str]:
    """Say how much image codecs need for the same PSNR, and what the figures leave out."""
    said = [_sentence_of_equal_psnr(rows, row) for row in _compared(rows)]
    on = about["device"]
    said += [f"Speeds are of one core{f', those of the model on {on}' if on not in (None, 'cpu') else ''}."]
    if about["model_bytes"]:
        said += [f"The model, {about['model_bytes'] / 1e6:,.1f} MB once, is in none of its figures, nor are names."]
    said += [f"{path}: bytes are an average of all its {held:,} images." for path, held in about["stores"].items()]
    if about["bits"] < 8:
        levels = 2 ** about["bits"]
        said += [
            f"The model sees {count(about['bits'], 'bit')} per channel: all codecs were given those {levels} levels."
        ]
    if about["missing_codecs"]:
        said += [f"Not measured, as Pillow lacks them here: {', '.join(about['missing_codecs'])}."]
    return said


def _compared(rows: Sequence[Row]) -> list[Row]:
    """Choose the rows to compare with codecs: the step nearest to 1 of each mask, and each store."""
    chosen: dict[tuple[str, str], tuple[float, Row]] = {}
    for row in rows:
        if row["kind"] in ("model", "store"):
            key, off = (row["kind"], row["method"]), abs(math.log(_number(row["setting"])))
            if key not in chosen or off < chosen[key][0]:
                chosen[key] = off, row
    return [row for _, row in chosen.values()]


def _number(setting: str) -> float:
    """Read the number of a setting; 1 if it has none.

    >>> _number("step 0.5"), _number("float16")
    (0.5, 1.0)
    """
    name, _, number = setting.rpartition(" ")
    return float(number) if name == "step" else 1.0


def _sentence_of_equal_psnr(rows: Sequence[Row], row: Row) -> str:
    lossy: dict[str, list[Row]] = {}
    for other in rows:
        if other["kind"] == "lossy":
            lossy.setdefault(other["method"], []).append(other)
    needs = [f"{name} {_need(others, row['psnr'])}" for name, others in lossy.items()]
    own = f"{row['method']}, {row['setting']}: {row['psnr']:.2f} dB at {row['payload_bits_per_dim']:.3f} bits/dim."
    return f"{own} For that PSNR, bits/dim without (with) headers: {', '.join(needs)}." if needs else own


def _need(rows: Sequence[Row], psnr: float) -> str:
    """Write the bits/dim at which the curve through `rows` has a PSNR; straight between its points."""
    points = sorted((row["psnr"], row["payload_bits_per_dim"], row["bits_per_dim"]) for row in rows)
    known, payload, on_disk = zip(*points, strict=True)
    sign = "< " if psnr < known[0] else "> " if psnr > known[-1] else ""
    return f"{sign}{np.interp(psnr, known, payload):.3f} ({np.interp(psnr, known, on_disk):.3f})"


def bench_data(found: Bench) -> dict[str, Any]:
    """Return what was measured as plain data."""
    rows = plain_rows(found.table)
    return {"about": found.about, "rows": rows, "sentences": bench_sentences(rows, found.about)}


def check_bench_folder(folder: Path, data: str) -> None:
    """Raise `DataError` if the files of bench cannot go to `folder`, or would overwrite what bench did not write.

    Nor may it be a folder of images at `data`: the plot would be one of them.
    """
    above = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    if not above.is_dir():
        raise DataError(f"{folder} cannot be written: {above} is a file; give another --out")
    there = [name for name in (f"{BENCH_NAME}.csv", PLOT_FILE) if (folder / name).exists()]
    if there and not (folder / f"{BENCH_NAME}.json").exists():
        raise DataError(f"{folder} holds {there[0]}, which is not of bench; give another --out")
    images = data_path(data)
    if isinstance(images, Path) and folder.resolve().is_relative_to(images.resolve()) and _may_hold_images(folder):
        raise DataError(f"{folder} is a folder of the images {images}; give a new folder as --out")


def _may_hold_images(folder: Path) -> bool:
    return folder.exists() and any(x.is_dir() or x.name.lower().endswith(EXTENSIONS) for x in folder.iterdir())


def save_bench(found: Bench, folder: Path) -> dict[str, str]:
    """Write table and plot into `folder`, and a section into the page that analyze-kl left there; returns where."""
    document = bench_data(found)
    save_json_and_csv(folder / BENCH_NAME, document, found.table)
    written = {"Table": str(folder / f"{BENCH_NAME}.csv"), "Plot": str(save_rate_curves(folder, found.table))}
    if _is_of_page(document, folder) and put_into_page(folder / PAGE_FILE, page_content(document)):
        written["Page"] = str(folder / PAGE_FILE)
    return written


def _is_of_page(document: Mapping[str, Any], folder: Path) -> bool:
    """Whether the page in `folder` is of the same model."""
    table = load_table(folder)
    return table is not None and table[1].get("model_hash") == document["about"]["model_hash"]
