"""What prune made of a model: the table of before and after, for the terminal, the page and scripts."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from ..analysis.ranking_file import FOLDER
from ..fine_tune.comparison import ALL, LEFT, Comparison
from .analysis_files import save_analysis
from .cutoffs import percent, plain_rows, save_json_and_csv
from .pruning_rows import HEADINGS, PRUNING_NAME, reference, row_cells, steps_note
from .splits import count_images


def comparison_table(found: Comparison) -> Table:
    """Make the table for the terminal."""
    about = found.about
    caption = f"change: from {reference(about)}, mean over the images; ± is its standard error\n{steps_note(about)}"
    if about["pictures"] < about["images"]:
        caption += f"\nPSNR, SSIM and bytes are of {about['pictures']:,} of the images"
    table = Table(title=f"{count_images(about['images'], about['held_out'])}", caption=caption)
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in HEADINGS[:2] else "right")
    for row in plain_rows(found.table):
        table.add_row(*row_cells(row))
    return table


def comparison_sentences(found: Comparison) -> list[str]:
    """Say what pruning costs now, and what it would have cost without training."""
    rows = {(row["model"], row["kept"]): row for row in plain_rows(found.table)}
    base = found.about["reference"]
    dense, after = rows[base, ALL], rows["after", LEFT]
    untrained = rows.get((base, LEFT), dense)  # a pruned run may have been pruned to the same again, for codes
    costs = [row["nelbo_change"] / dense["nelbo"] for row in (after, untrained)]
    share = percent(after["kept_dims"] / after["dims"])
    if found.about["codes"]:  # whose length is no KL
        step = "" if base in found.about["learned_steps"] else " at a step of 1"
        return [
            f"With {share} of the latent dimensions an image takes {after['bytes']:,.0f} bytes at "
            f"{after['psnr']:.2f} dB; without having been trained for it, {untrained['bytes']:,.0f} bytes at "
            f"{untrained['psnr']:.2f} dB{step}."
        ]
    return [
        f"With {share} of the latent dimensions the NELBO is {_by(costs[0])} than with all of {_model(base)}; "
        f"without having been trained for it, it would be {_by(costs[1])}."
    ]


def _model(name: str) -> str:
    return "the control" if name == "control" else "the unpruned model"


def _by(share: float) -> str:
    return f"{100 * abs(share):.2g}% {'higher' if share >= 0 else 'lower'}"


def save_comparison(found: Comparison, run: Path) -> dict[str, str]:
    """Write table, page and the analysis of what is left into the `run`; returns where each is, by name."""
    folder = run / FOLDER
    save_json_and_csv(folder / PRUNING_NAME, {"about": found.about, "rows": plain_rows(found.table)}, found.table)
    written = save_analysis(found.after, folder, run)
    return {"Run": str(run), "Before and after": str(folder / f"{PRUNING_NAME}.csv"), "Page": written["Page"]}
