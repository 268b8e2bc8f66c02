"""How a study's results are written: a table for people, CSV and JSON for programs, a picture."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from conditions import conditions
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's, which colour-blind readers tell apart; plots vary dashes or markers with them."""


def command() -> str:
    """The command line this process was started with."""
    return shlex.join(["python", *sys.argv])


def write_results(out: Path, name: str, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> None:
    """Write `out`/name.csv with the rows, and `out`/name.json with the conditions as well."""
    pd.DataFrame(rows).to_csv(out / f"{name}.csv", index=False)
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
    about = {"conditions": conditions(), "command": command(), "settings": plain, "rows": list(rows)}
    (out / f"{name}.json").write_text(json.dumps(about, indent=2) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> None:
    """Print conditions, command and table; a file gets it 140 columns wide."""
    print(f"{conditions()}\n{command()}")
    console = Console() if sys.stdout.isatty() else Console(width=140)
    table = Table(title=title, caption=caption)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def write_markdown(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The table again, as it goes into a page."""
    lines = [list(columns), ["--"] + ["--:"] * (len(columns) - 1), *rows]
    path.write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG."""
    figure.savefig(path, dpi=110)
    print(f"Plot: {path}")
