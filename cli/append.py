"""`hvae-codec append`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .display import CONTINUES, console, interruptible, print_json, report_source, report_splits, show, stages, warn
from .dry_run import check_whole, look
from .encode_options import DryRun, WorkerOption
from .engine_session import engine_session, own_device, parse_worker, refuse_torchrun
from .image_range import ImageRange, selected
from .options import (
    AsJson,
    BatchSize,
    CheckBytes,
    Data,
    DeviceOption,
    Graph,
    GraphName,
    On,
    Seed,
    Split,
    SplitName,
    StoreArgument,
    StoreModel,
)
from .source_options import SourceOptions, takes_source_options

if TYPE_CHECKING:
    from hvae_codec.data.sources import ImageSource
    from hvae_codec.data.training_and_held_out import TrainingAndHeldOut
    from hvae_codec.encode.encoded_store import EncodedStore
    from hvae_codec.encode.forecast import EncodeForecast
    from hvae_codec.model.hvae import HVAE
    from hvae_codec.progress import Stage
    from hvae_codec.store.workers import Worker

Out = Annotated[
    str | None,
    typer.Option("--out", help="Write the appended store there, a folder or a URL, and leave STORE as it is."),
]
Prefix = Annotated[
    str,
    typer.Option(
        "--prefix",
        help="What names of the new images begin with in the store, as fashion/, if it has others of theirs.",
    ),
]


@dataclass(frozen=True)
class AppendRequest:
    """What a user asks for, read from the command line."""

    store: str
    out: str | None
    prefix: str
    """What names of the new images begin with in the store."""
    split: SplitName
    images: str
    """Which of the split's images."""
    check: bool
    batch_size: int | None
    seed: int
    device: str
    on: str | None
    """Where row groups are worked on."""
    dry_run: bool
    as_json: bool


@takes_source_options
def command(
    data: Data,
    store: StoreArgument,
    source_options: SourceOptions,
    out: Out = None,
    prefix: Prefix = "",
    split: Split = SplitName.all,
    images: ImageRange = "all",
    check: CheckBytes = False,
    on: On = None,
    worker_option: WorkerOption = "",
    dry_run: DryRun = False,
    as_json: AsJson = False,
    model: StoreModel = None,
    device: DeviceOption = "auto",
    batch_size: BatchSize = None,
    graph: Graph = GraphName.auto,
    seed: Seed = 0,
) -> None:
    """Add images to a store, with the model, mask and codec that it was made with.

    The store stays readable, and has the new images all at once. With --out, which a store in a bucket needs, it stays
    as it is, and several workers can write the appended store, as in encode. Interrupted, the same command continues.
    --on sends row groups to other processes, as in encode.
    """
    from hvae_codec.data.training_and_held_out import TrainingAndHeldOut

    request = AppendRequest(store, out, prefix, split, images, check, batch_size, seed, device, on, dry_run, as_json)
    start = time.monotonic()
    refuse_torchrun("append")
    worker = parse_worker(worker_option)
    if dry_run:
        check_whole(worker_option)
    hvae = _load(request, model, graph, worker)
    given = TrainingAndHeldOut(source_options.open_for_store(data, hvae.config, store))
    report_splits(given)
    wanted = selected(given, split, images)
    if dry_run:
        _look(request, hvae, given, wanted, source_options)
        return
    appended = _append(request, hvae, wanted, worker)
    if as_json:
        _print(request, appended, given.data, wanted, worker, time.monotonic() - start)
    else:
        _report(request, appended, given.data, worker)


def _load(request: AppendRequest, run: Path | None, graph: GraphName, worker: Worker) -> HVAE:
    from hvae_codec.cpu import reuse_freed_memory
    from hvae_codec.encode.append import look_at, open_to_append
    from hvae_codec.model.recorded import Recording

    store, out = request.store, request.out
    opened = look_at(store, out) if request.dry_run else open_to_append(store, out, worker)
    reuse_freed_memory()
    model = opened.load_model(own_device(request.device, request.on, worker), run)
    model.recording = Recording(graph.value, warn)
    return model


def _append(request: AppendRequest, model: HVAE, wanted: ImageSource, worker: Worker) -> EncodedStore | None:
    from hvae_codec.encode.append import append_worker
    from hvae_codec.engine.tally import Tally
    from hvae_codec.model.worker_device import worker_device

    tally = Tally()
    with interruptible(CONTINUES), engine_session(request.on) as engine, stages(tally=tally) as stage:
        return append_worker(
            model,
            wanted,
            request.store,
            worker,
            out=request.out,
            prefix=request.prefix,
            batch_size=request.batch_size,
            seed=request.seed,
            check=request.check,
            comparing=stage("Comparing"),
            device=worker_device(engine, request.device) if request.on else None,
            engine=engine,
            tally=tally,
            copying=stage("Copying"),
            progress=stage.continued("Encoding"),
            on_warning=warn,
        )


def _look(
    request: AppendRequest, model: HVAE, given: TrainingAndHeldOut, wanted: ImageSource, source_options: SourceOptions
) -> None:
    """Show what the images are, and what adding them would take."""
    from hvae_codec.encode.forecast import forecast_append
    from hvae_codec.report.forecast import encode_forecast_data, encode_forecast_sentences

    def forecast(stage: Stage) -> EncodeForecast:
        return forecast_append(
            model,
            wanted,
            request.store,
            out=request.out,
            prefix=request.prefix,
            batch_size=request.batch_size,
            seed=request.seed,
            progress=stage("Encoding some"),
        )

    shown = (encode_forecast_data, encode_forecast_sentences)
    look(given, wanted, forecast, *shown, skipping=source_options.skip_unusable, as_json=request.as_json)


def _report(request: AppendRequest, appended: EncodedStore | None, source: ImageSource, worker: Worker) -> None:
    from hvae_codec.report.about import store_table, worker_sentence

    if appended is not None:
        report_source(source)
        show(store_table(appended))
    else:
        console().print(worker_sentence(request.out or request.store, worker))


def _print(
    request: AppendRequest,
    appended: EncodedStore | None,
    source: ImageSource,
    wanted: ImageSource,
    worker: Worker,
    seconds: float,
) -> None:
    from hvae_codec.report.finished import store_data, unfinished_data

    report_source(source)
    if appended is not None:
        print_json(store_data(appended, wanted, seconds))
    else:
        print_json(unfinished_data(request.out or request.store, worker, seconds))
