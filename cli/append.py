"""`hvae-codec append`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .display import CONTINUES, console, interruptible, report_source, show, stages, warn
from .distributed_session import distributed_session, parse_worker
from .encode_options import WorkerOption
from .options import (
    BatchSize,
    CheckBytes,
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

Out = Annotated[
    str | None,
    typer.Option("--out", help="Write the appended store there, a folder or a URL, and leave STORE as it is."),
]
Model = Annotated[
    Path | None,
    typer.Option("--model", help="Run whose model encoded the store (the store's own, or the one it names)."),
]


@takes_source_options
def command(
    data: Data,
    store: StoreArgument,
    source_options: SourceOptions,
    out: Out = None,
    split: Split = SplitName.all,
    check: CheckBytes = False,
    worker_option: WorkerOption = "",
    model: Model = None,
    device: DeviceOption = "auto",
    batch_size: BatchSize = None,
    graph: Graph = GraphName.auto,
    seed: Seed = 0,
) -> None:
    """Add images to a store, with the model, mask and codec that it was made with.

    The store stays readable, and has the new images all at once. With --out, which a store in a bucket needs, it stays
    as it is, and several processes can write the appended store, as in encode. An interrupted append continues if the
    same command is run again.
    """
    from hvae_codec.cpu import reuse_freed_memory
    from hvae_codec.encode.append import append_worker, open_to_append
    from hvae_codec.model.recorded import Recording
    from hvae_codec.report.about import store_table, worker_sentence

    with distributed_session(device, worker_option) as processes:
        worker = parse_worker(worker_option, processes)
        opened = processes.run_on_main(lambda: open_to_append(store, out, worker))
        reuse_freed_memory()
        hvae = opened.load_model(processes.device, model)
        hvae.recording = Recording(graph.value, warn if processes.is_main else lambda _: None)
        source = source_options.open_for_store(data, hvae.config, store)
        with interruptible(CONTINUES), stages(quiet=not processes.is_main) as stage:
            appended = append_worker(
                hvae,
                source.split(split.value),
                store,
                worker,
                out=out,
                batch_size=batch_size,
                seed=seed,
                check=check,
                comparing=stage("Comparing"),
                copying=stage("Copying"),
                progress=stage("Encoding"),
                on_warning=warn if processes.is_main else lambda _: None,
            )
        if appended is not None:
            report_source(source)
            show(store_table(appended))
        elif worker_option:
            console().print(worker_sentence(out or store, worker))
