"""`hvae-codec doctor`."""

from __future__ import annotations

from pathlib import Path

import typer

from .display import print_json, show
from .options import AsJson


def command(as_json: AsJson = False) -> None:
    """Show what this installation has to work with: versions, GPUs, memory, disk, and what is missing for what.

    Exits with 1 if a needed package is missing, too old or broken.
    """
    from hvae_codec.report.environment import environment

    found = environment(Path())
    if as_json:
        print_json(found.data)
    else:
        show(*found.render())
    if found.data["faults"]:
        raise typer.Exit(1)
