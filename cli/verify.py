"""`hvae-codec verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .display import console, interruptible, stages
from .options import AsJson, DeviceOption, StoreArgument, torch_device


def command(
    store: StoreArgument,
    deep: Annotated[
        bool, typer.Option("--deep", help="Decode every image too, and compare it with what encode --verify noted.")
    ] = False,
    as_json: AsJson = False,
    model: Annotated[
        Path | None, typer.Option("--model", help="Run whose model encoded the store (the one the store names).")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Read everything in a store and say what is damaged: which files, row groups and images.

    Exit code 0 where all is well, 1 where anything is damaged. Only --deep needs the model.
    """
    from hvae_codec.encode.verify import verify
    from hvae_codec.report.verified import damage_table, verified_data, verified_sentence

    hvae = None
    if deep:
        from hvae_codec.encode.decoded_check import load_store_model
        from hvae_codec.model.checkpoint import load_model

        hvae = load_model(model, torch_device(device)) if model else load_store_model(store, torch_device(device))
    with interruptible("Nothing was changed."), stages() as stage:
        report = verify(store, deep=deep, model=hvae, progress=stage("Verifying"))
    out = console()
    if as_json:
        print(json.dumps(verified_data(report), indent=2))
    else:
        out.print(verified_sentence(report) if report.ok else damage_table(report), *report.notes, sep="\n")
    raise typer.Exit(0 if report.ok else 1)
