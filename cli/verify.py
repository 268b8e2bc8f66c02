"""`hvae-codec verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .display import interruptible, show, stages
from .options import AsJson, DeviceOption, StoreArgument, torch_device

if TYPE_CHECKING:
    from hvae_codec.progress import Progress
    from hvae_codec.verification.verify import VerifyReport


def command(
    store: StoreArgument,
    deep: Annotated[
        bool, typer.Option("--deep", help="Decode every image too, and compare it with what encode --verify stored.")
    ] = False,
    as_json: AsJson = False,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Run whose model encoded the store (the store's own, or the one it names)."),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Read everything in a store, and name the files, row groups and images that are damaged.

    Exit code 0 if all is well, 1 if anything is damaged. Only --deep needs the model.
    """
    from hvae_codec.report.verified import damage_table, verified_data, verified_sentence
    from hvae_codec.verification.verify import verify

    with interruptible("Nothing was changed."), stages() as stage:
        report = _deep(store, model, device, stage("Verifying")) if deep else verify(store, progress=stage("Verifying"))
    if as_json:
        print(json.dumps(verified_data(report), indent=2))
    else:
        show(verified_sentence(report) if report.ok else damage_table(report), *report.notes)
    raise typer.Exit(0 if report.ok else 1)


def _deep(store: str, model: Path | None, device: str, progress: Progress) -> VerifyReport:
    from hvae_codec.encode.deep_verify import verify_deep

    return verify_deep(store, progress=progress, device=torch_device(device), run=model)
