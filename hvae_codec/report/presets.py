"""The tables of presets: what they are, what others report of them, and what training steps took here."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from rich.table import Table

from ..config import Config
from ..presets import (
    Measured,
    Reported,
    load_measured,
    load_parameter_counts,
    load_preset,
    load_reported,
    preset_names,
)

_TITLE = "Presets: train DATA --preset NAME; presets NAME prints one to edit"


def preset_rows() -> list[dict[str, Any]]:
    """Return plain data of every preset, by name; `reported` is None if nothing was found, `measured` may be empty."""
    reported, measured, parameters = load_reported(), load_measured(), load_parameter_counts()
    return [
        _row(name, load_preset(name), parameters[name], reported.get(name)) | {"measured": _steps(measured.get(name))}
        for name in preset_names()
    ]


def _steps(measured: Sequence[Measured] | None) -> list[dict[str, Any]]:
    steps = measured or []
    return [dataclasses.asdict(step) | {"steps_per_second": round(step.steps_per_second, 2)} for step in steps]


def _row(name: str, config: Config, parameters: int, reported: Reported | None) -> dict[str, Any]:
    return {
        "name": name,
        "resolution": config.model.resolution,
        "channels": config.model.channels,
        "bits": config.model.pixel_bits,
        "parameters": parameters,
        "stochastic_layers": len(config.model.groups),
        "latent_dims": config.model.latent_dims,
        "batch_size": config.train.batch_size,
        "steps": config.train.steps,
        "reported": reported and dataclasses.asdict(reported),
    }


def preset_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Make the table of presets for the terminal."""
    columns = [column for column in rows[0] if column not in ("reported", "measured")]
    return _table(_TITLE, columns, [[_cell(row[column]) for column in columns] for row in rows])


def reported_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Make the table with what others report of the presets; the sources stand below, by number."""
    sources = _sources(rows)
    own = ("name", "batch_size", "steps")
    cells = [[*(_cell(row[column]) for column in own), *_reported_cells(row["reported"], sources)] for row in rows]
    title = f"{_TITLE}\nReported of these configurations; – was not found"
    table = _table(title, (*own, "NELBO", "time", "GPUs", "memory", "note", "source"), cells)
    table.caption = "\n".join(f"[{number}] {source}" for number, source in enumerate(sources, 1))
    table.caption_justify = "left"
    return table


def _sources(rows: Sequence[dict[str, Any]]) -> list[str]:
    """List the documents that figures are from, each once."""
    keys = ("source", "time_source", "memory_source")
    found = (row["reported"][key] for key in keys for row in rows if row["reported"])
    return [source for source in dict.fromkeys(found) if source]


def _reported_cells(reported: dict[str, Any] | None, sources: Sequence[str]) -> list[str]:
    """Make the cells of a preset; a figure that is from another document than the NELBO has its number."""
    if reported is None:
        return ["–"] * 6
    numbers = {source: f"[{number}]" for number, source in enumerate(sources, 1)}
    time, memory = (
        f"{reported[key] or '–'} {numbers.get(reported[f'{key}_source'], '')}".rstrip() for key in ("time", "memory")
    )
    others = (reported["gpus"] or "–", memory, reported["note"] or "–")
    return [f"{reported['nelbo']:.2f} {reported['unit']}", time, *others, numbers[reported["source"]]]


def measured_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Make the table of what training steps took where they were measured."""
    own = ("batch_size", "precision", "ms", "steps_per_second", "peak_mib", "card", "source")
    cells = [[row["name"], *(_cell(step[key]) for key in own)] for row in rows for step in row["measured"]]
    title = "Measured by this project: training steps on one GPU, recorded"
    columns = ("name", "batch_size", "precision", "ms/step", "steps/s", "peak MiB", "GPU", "source")
    return _table(title, columns, cells)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in columns:
        text = name in ("name", "time", "GPUs", "memory", "note", "source", "precision", "GPU")
        justify: Literal["left", "right"] = "left" if text else "right"
        table.add_column(name.replace("_", "\n"), justify=justify, no_wrap=not text or name == "name")
    for cells in rows:
        table.add_row(*cells)
    return table


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
