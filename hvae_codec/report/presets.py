"""The tables of presets: what they are, and what others report of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from ..presets import load_parameter_counts, load_preset, load_reported, preset_names

_TITLE = "Presets: train DATA --preset NAME; presets NAME prints one to edit"


def preset_rows() -> list[dict[str, Any]]:
    """Return plain data of every preset, by name; `reported` is None if nothing was found."""
    everything, parameters = load_reported(), load_parameter_counts()
    rows = []
    for name in preset_names():
        config = load_preset(name)
        model, reported = config.model, everything.get(name)
        rows.append(
            {
                "name": name,
                "resolution": model.resolution,
                "channels": model.channels,
                "bits": model.bits,
                "parameters": parameters[name],
                "stochastic_layers": len(model.groups),
                "latent_dims": model.latent_dims,
                "batch_size": config.train.batch_size,
                "steps": config.train.steps,
                "reported": None if reported is None else dataclasses.asdict(reported),
            }
        )
    return rows


def preset_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Make the table of presets for the terminal."""
    columns = [column for column in rows[0] if column != "reported"]
    table = Table(title=_TITLE, title_justify="left")
    for column in columns:
        _add_column(table, column, justify="left" if column == "name" else "right")
    for row in rows:
        table.add_row(*(_cell(row[column]) for column in columns))
    return table


def reported_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Make the table with what others report of the presets; the sources stand below, by number."""
    sources = list(dict.fromkeys(row["reported"]["source"] for row in rows if row["reported"]))
    caption = "\n".join(f"[{number}] {source}" for number, source in enumerate(sources, 1))
    table = Table(title=f"{_TITLE}\nReported of these configurations; – was not found", title_justify="left")
    table.caption, table.caption_justify = caption, "left"
    for column in ("name", "batch_size", "steps", "NELBO"):
        _add_column(table, column, justify="left" if column == "name" else "right")
    for column in ("time", "GPUs", "memory", "note", "source"):
        _add_column(table, column, justify="left")
    for row in rows:
        own = (_cell(row[column]) for column in ("name", "batch_size", "steps"))
        table.add_row(*own, *_reported_cells(row["reported"], sources))
    return table


def _reported_cells(reported: dict[str, Any] | None, sources: Sequence[str]) -> list[str]:
    if reported is None:
        return ["–"] * 6
    texts = [
        f"{reported['nelbo']:.2f} {reported['unit']}",
        *(reported[key] for key in ("time", "gpus", "memory", "note")),
    ]
    return [*(text or "–" for text in texts), f"[{sources.index(reported['source']) + 1}]"]


def _add_column(table: Table, name: str, justify: Any) -> None:
    table.add_column(name.replace("_", "\n"), justify=justify, no_wrap=justify == "right" or name == "name")


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
