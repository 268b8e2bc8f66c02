"""`hvae-codec info`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from .display import show
from .options import AsJson


def command(
    path: Annotated[str, typer.Argument(help="A store, also as a URL, or a run.")],
    as_json: AsJson = False,
) -> None:
    """Show what a store or a run holds, and what it costs and saves."""
    from hvae_codec.report.about import describe

    facts = describe(path)
    if as_json:
        print(json.dumps(facts.data, indent=2))
        return
    show(*facts.render())
