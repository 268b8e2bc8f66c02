"""`hvae-codec verify`."""

from __future__ import annotations

import json

import typer

from .display import console, interruptible, stages
from .options import AsJson, StoreArgument


def command(
    store: StoreArgument,
    as_json: AsJson = False,
) -> None:
    """Read everything in a store and say what is damaged: which files, row groups and images.

    Exit code 0 where all is well, 1 where anything is damaged.
    """
    from hvae_codec.encode.verify import verify
    from hvae_codec.report.verified import damage_table, verified_data, verified_sentence

    with interruptible("Nothing was changed."), stages() as stage:
        report = verify(store, progress=stage("Verifying"))
    out = console()
    if as_json:
        print(json.dumps(verified_data(report), indent=2))
    else:
        out.print(verified_sentence(report) if report.ok else damage_table(report), *report.notes, sep="\n")
    raise typer.Exit(0 if report.ok else 1)
