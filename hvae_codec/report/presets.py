"""The table of presets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from ..presets import load_preset, preset_names
from .about import count_parameters


def preset_rows() -> list[dict[str, Any]]:
    """Plain data of every preset, by name."""
    rows = []
    for name in preset_names():
        config = load_preset(name)
        model = config.model
        rows.append(
            {
                "name": name,
                "resolution": model.resolution,
                "channels": model.channels,
                "bits": model.bits,
                "parameters": count_parameters(config),
                "stochastic_layers": len(model.groups),
                "latent_dims": model.latent_dims,
                "batch_size": config.train.batch_size,
                "steps": config.train.steps,
            }
        )
    return rows


def preset_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The presets, for the terminal."""
    table = Table(title="Presets: train DATA --preset NAME; presets NAME prints one to edit", title_justify="left")
    for i, column in enumerate(rows[0]):
        table.add_column(column.replace("_", "\n"), justify="right" if i else "left", no_wrap=not i)
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()))
    return table
