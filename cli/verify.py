"""`hvae-codec verify`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .display import interruptible, say, show, stages
from .options import AsJson, DeviceOption, On, StoreArgument, StoreModel, torch_device

if TYPE_CHECKING:
    from hvae_codec.verification.verify import VerifyReport


def command(
    store: StoreArgument,
    deep: Annotated[
        bool, typer.Option("--deep", help="Decode every image too, and compare it with what encode --verify stored.")
    ] = False,
    as_json: AsJson = False,
    model: StoreModel = None,
    device: DeviceOption = "auto",
    on: On = None,
) -> None:
    """Read everything in a store, and name the files, row groups and images that are damaged.

    Exit code 0 if all is well, 1 if anything is damaged. Only --deep needs the model.
    """
    from hvae_codec.engine.tally import Tally
    from hvae_codec.engine.where import engine_on
    from hvae_codec.report.verified import damage_table, verified_data, verified_sentence
    from hvae_codec.verification.verify import verify

    tally = Tally()
    with (
        interruptible("Nothing was changed."),
        engine_on(on, initializer=_prepare_worker() if deep else None, say=say) as engine,
        stages(tally=tally) as stage,
    ):
        work: Any = {"progress": stage("Verifying"), "engine": engine, "tally": tally}
        report = _deep(store, model, device if on else torch_device(device), work) if deep else verify(store, **work)
    if as_json:
        print(json.dumps(verified_data(report), indent=2))
    else:
        show(verified_sentence(report) if report.ok else damage_table(report), *report.notes)
    raise typer.Exit(0 if report.ok else 1)


def _deep(store: str, model: Path | None, device: str, work: Mapping[str, Any]) -> VerifyReport:
    from hvae_codec.encode.deep_verify import verify_deep

    return verify_deep(store, device=device, run=model, **work)


def _prepare_worker() -> Callable[[], None]:
    from hvae_codec.cpu import prepare_worker  # with torch, which reading takes without

    return prepare_worker
