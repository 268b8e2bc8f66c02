"""`hvae-codec append`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .display import CONTINUES, console, interruptible, print_json, report_source, report_splits, show, stages, warn
from .distributed_session import distributed_session, parse_worker
from .dry_run import check_alone, look
from .encode_options import DryRun, WorkerOption
from .image_range import ImageRange, selected
from .options import (
    AsJson,
    BatchSize,
    Data,
    DeviceOption,
    Graph,
    GraphName,
    Seed,
    Split,
    SplitName,
    StoreArgument,
)
from .source_options import SourceOptions, takes_source_options

if TYPE_CHECKING:
    from hvae_codec.data.sources import ImageSource
    from hvae_codec.data.training_and_held_out import TrainingAndHeldOut
    from hvae_codec.distributed import DistributedContext
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
Model = Annotated[
    Path | None,
    typer.Option("--model", help="Run whose model encoded the store (the store's own, or the one it names)."),
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
    batch_size: int | None
    seed: int
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
    worker_option: WorkerOption = "",
    dry_run: DryRun = False,
    as_json: AsJson = False,
    model: Model = None,
    device: DeviceOption = "auto",
    batch_size: BatchSize = None,
    graph: Graph = GraphName.auto,
    seed: Seed = 0,
) -> None:
    """Add images to a store, with the model, mask and codec that it was made with.

    The store stays readable, and has the new images all at once. With --out, which a store in a bucket needs, it stays
    as it is, and several processes can write the appended store, as in encode. Interrupted, the same command continues.
    """
    from hvae_codec.cpu import reuse_freed_memory
    from hvae_codec.data.training_and_held_out import TrainingAndHeldOut
    from hvae_codec.encode.append import look_at, open_to_append
    from hvae_codec.model.recorded import Recording

    request = AppendRequest(store, out, prefix, split, images, batch_size, seed, dry_run, as_json)
    start = time.monotonic()
    with distributed_session(device, worker_option) as processes:
        worker = parse_worker(worker_option, processes)
        if dry_run:
            check_alone(worker_option, processes)
        opening = (lambda: look_at(store, out)) if dry_run else (lambda: open_to_append(store, out, worker))
        opened = processes.run_on_main(opening)
        reuse_freed_memory()
        hvae = opened.load_model(processes.device, model)
        hvae.recording = Recording(graph.value, warn if processes.is_main else lambda _: None)
        given = TrainingAndHeldOut(source_options.open_for_store(data, hvae.config, store))
        if processes.is_main:
            report_splits(given)
        wanted = selected(given, split, images)
        if dry_run:
            _look(request, hvae, given, wanted, source_options)
            return
        appended = _append(request, hvae, wanted, worker, processes)
        if as_json:
            _print(request, appended, given.data, wanted, worker, processes, time.monotonic() - start)
        else:
            _report(request, appended, given.data, worker if worker_option else None)


def _append(
    request: AppendRequest, model: HVAE, wanted: ImageSource, worker: Worker, processes: DistributedContext
) -> EncodedStore | None:
    from hvae_codec.encode.append import append_worker

    with interruptible(CONTINUES), stages(quiet=not processes.is_main) as stage:
        return append_worker(
            model,
            wanted,
            request.store,
            worker,
            out=request.out,
            prefix=request.prefix,
            batch_size=request.batch_size,
            seed=request.seed,
            copying=stage("Copying"),
            progress=stage("Encoding"),
            on_warning=warn if processes.is_main else lambda _: None,
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


def _report(request: AppendRequest, appended: EncodedStore | None, source: ImageSource, worker: Worker | None) -> None:
    from hvae_codec.report.about import store_table, worker_sentence

    if appended is not None:
        report_source(source)
        show(store_table(appended))
    elif worker is not None:
        console().print(worker_sentence(request.out or request.store, worker))


def _print(
    request: AppendRequest,
    appended: EncodedStore | None,
    source: ImageSource,
    wanted: ImageSource,
    worker: Worker,
    processes: DistributedContext,
    seconds: float,
) -> None:
    """Print one JSON object: of processes that torchrun started, the first one does."""
    from hvae_codec.encode.encoded_store import open_store
    from hvae_codec.report.finished import store_data, unfinished_data

    target = request.out or request.store
    finished = processes.any(appended is not None) if processes.world_size > 1 else appended is not None
    if not processes.is_main:
        return
    report_source(source)
    if finished:
        print_json(store_data(appended or open_store(target), wanted, seconds))
    else:
        print_json(unfinished_data(target, worker, seconds))
