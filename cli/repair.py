"""`hvae-codec repair`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hvae_codec.errors import UsageError

from .display import CONTINUES, interruptible, report_source, report_splits, show, stages, warn
from .engine_session import engine_session
from .options import (
    BatchSize,
    CheckBytes,
    DeviceOption,
    Graph,
    GraphName,
    On,
    Seed,
    StoreArgument,
    check_on,
    torch_device,
)
from .source_options import SourceOptions, takes_source_options

if TYPE_CHECKING:
    from hvae_codec.data.sources import ImageSource
    from hvae_codec.encode.repair import RepairReport
    from hvae_codec.model.hvae import HVAE

Data = Annotated[str | None, typer.Argument(help="Images that were encoded; not needed if only metadata are damaged.")]
Model = Annotated[
    Path | None, typer.Option("--model", help="Run whose model encoded the store (the one the store names).")
]


@takes_source_options
def command(
    store: StoreArgument,
    source_options: SourceOptions,
    data: Data = None,
    model: Model = None,
    check: CheckBytes = False,
    device: DeviceOption = "auto",
    batch_size: BatchSize = None,
    graph: Graph = GraphName.auto,
    seed: Seed = 0,
    on: On = None,
) -> None:
    """Encode the damaged row groups of a store again, make damaged tables anew, and restore damaged metadata.

    Only row groups, names and labels take DATA: all of it, also if one split was encoded, which is found out. With the
    images, machine, --batch-size and --seed of the encode, the store is byte for byte what it was. Whatever is written
    is first proven by the store's digests, its fingerprint, checksums, or what can still be read. The store stays
    readable.
    """
    from hvae_codec.analysis.ranking_file import stored_ranking
    from hvae_codec.cpu import reuse_freed_memory
    from hvae_codec.encode.repair import repair, restore_metadata
    from hvae_codec.encode.repair_tasks import RepairOptions
    from hvae_codec.engine.tally import Tally

    if check and data is None:
        raise UsageError("--check reads the images that were encoded; give DATA, too, or leave it out")
    check_on(on)
    reuse_freed_memory()
    restored = restore_metadata(store)  # the store then says which model it is of
    hvae = _model(store, model, "cpu" if on else torch_device(device), graph) if model or data else None
    source = _images(data, hvae, store, source_options) if data and hvae else None
    tally = Tally()
    with interruptible(CONTINUES), engine_session(on) as engine, stages(tally=tally) as stage:
        report = repair(
            store,
            source,
            hvae,
            stats=stored_ranking(hvae) if hvae else None,
            options=RepairOptions(batch_size=batch_size, seed=seed, check=check, device=device, graph=graph.value),
            progress=stage("Encoding"),
            comparing=stage("Comparing"),
            engine=engine,
            tally=tally,
        )
    if source:
        report_source(source)
    _report(report, restored)
    raise typer.Exit(0 if report.after.ok else 1)


def _model(store: str, run: Path | None, device: str, graph: GraphName) -> HVAE:
    from hvae_codec.encode.deep_verify import load_store_model
    from hvae_codec.model.recorded import Recording

    model = load_store_model(store, device, run)
    model.recording = Recording(graph.value, warn)
    return model


def _images(data: str, model: HVAE, store: str, source_options: SourceOptions) -> ImageSource:
    from hvae_codec.data.training_and_held_out import TrainingAndHeldOut

    source = source_options.open_for_store(data, model.config, store)
    report_splits(TrainingAndHeldOut(source))
    return source


def _report(report: RepairReport, restored: Sequence[str]) -> None:
    from hvae_codec.report.verified import damage_table, repaired_sentence, verified_sentence

    show(repaired_sentence(report, restored), *report.notes)
    show(verified_sentence(report.after) if report.after.ok else damage_table(report.after))
