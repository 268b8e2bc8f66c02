"""`hvae-codec export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .display import console
from .options import LATEST_RUN


def command(
    out: Annotated[Path, typer.Option("--out", help="Folder to write, such as published/NAME.")],
    run: Annotated[Path, typer.Argument(help="Run to export.")] = LATEST_RUN,
) -> None:
    """Write a run as a published Efficient-VDVAE checkpoint with its .cfg file."""
    from hvae_codec.model.published_export import export_published

    exported = export_published(run, out)
    console().print(f"{exported.checkpoint} and {exported.config_file.name}: {exported.parameters:,} parameters")
    for note in exported.notes:
        console().print(f"Note: {note}")
