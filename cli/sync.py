"""`hvae-codec sync`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hvae_codec.errors import UsageError

from .display import CONTINUES, interruptible, print_json, report_source, show, stages, warn
from .options import (
    AsJson,
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
    StoreModel,
    torch_device,
)
from .source_options import SourceOptions, takes_source_options

if TYPE_CHECKING:
    from hvae_codec.config import ModelConfig
    from hvae_codec.data.sources import ImageSource
    from hvae_codec.encode.comparison import Comparison

Apply = Annotated[
    bool, typer.Option("--apply", help="Encode what is new and changed, and make the store one of these images alone.")
]
Out = Annotated[
    str | None,
    typer.Option("--out", help="With --apply: write the new store there, a folder or a URL, and leave STORE as it is."),
]


@dataclass(frozen=True)
class SyncRequest:
    """What a user asks for, read from the command line."""

    data: str
    store: str
    source_options: SourceOptions
    check: bool
    split: SplitName
    as_json: bool

    def open(self, model: ModelConfig) -> ImageSource:
        """Open the images as those of the store were."""
        return self.source_options.open_for_store(self.data, model, self.store)

    def facts(self, found: Comparison) -> dict[str, Any]:
        """Return what differs, or show it if that is not to be JSON."""
        from hvae_codec.report.comparison import comparison_data, comparison_sentences

        if self.as_json:
            return comparison_data(found)
        show(*comparison_sentences(found))
        return {}


@takes_source_options
def command(
    data: Data,
    store: StoreArgument,
    source_options: SourceOptions,
    apply: Apply = False,
    out: Out = None,
    check: CheckBytes = False,
    split: Split = SplitName.all,
    as_json: AsJson = False,
    model: StoreModel = None,
    device: DeviceOption = "auto",
    batch_size: BatchSize = None,
    graph: Graph = GraphName.auto,
    seed: Seed = 0,
) -> None:
    """Say which images are new, changed, renamed and gone since a store was made of DATA; --apply makes it follow.

    DATA are all images that the store should have. Exit code 0: nothing differs, or it was applied; 1: something
    differs. With --apply, latents of unchanged images are kept, and the others encoded with the store's model, mask and
    codec. The store stays readable, and changes all at once. An interrupted sync continues if the same command is run
    again.
    """
    if out is not None and not apply:
        raise UsageError(f"--out {out} is for the store that --apply makes; give --apply, too, or leave out --out")
    request = SyncRequest(data, store, source_options, check, split, as_json)
    if apply:
        _apply(request, out, model, torch_device(device), graph, batch_size, seed)
    else:
        _compare(request)


def _compare(request: SyncRequest) -> None:
    """Show what differs, and end the command with the exit code for it; without torch, which takes long to import."""
    from hvae_codec.config import config_from_dict
    from hvae_codec.encode.comparison import compare
    from hvae_codec.store.reader import Store

    opened = Store.open(request.store)
    source = request.open(config_from_dict({"model": opened.config}).model)
    wanted = source.split(request.split.value)
    with interruptible("Nothing was changed."), stages() as stage:
        found = compare(wanted, opened, check=request.check, progress=stage("Comparing"))
    facts = request.facts(found)
    if request.as_json:
        print_json(facts)
    raise typer.Exit(1 if found.differs else 0)


def _apply(
    request: SyncRequest,
    out: str | None,
    model: Path | None,
    device: str,
    graph: GraphName,
    batch_size: int | None,
    seed: int,
) -> None:
    from hvae_codec.cpu import reuse_freed_memory
    from hvae_codec.encode.sync import open_to_sync, sync
    from hvae_codec.model.recorded import Recording
    from hvae_codec.report.about import store_table

    reuse_freed_memory()
    hvae = open_to_sync(request.store, out).load_model(device, model)
    hvae.recording = Recording(graph.value, warn)
    source = request.open(hvae.config)
    compared: list[dict[str, Any]] = []
    with interruptible(CONTINUES), stages() as stage:
        synced = sync(
            hvae,
            source.split(request.split.value),
            request.store,
            out=out,
            check=request.check,
            batch_size=batch_size,
            seed=seed,
            comparing=stage("Comparing"),
            on_compared=lambda found: compared.append(request.facts(found)),
            copying=stage("Copying"),
            progress=stage.continued("Encoding"),
            on_warning=warn,
        )
    report_source(source)
    if request.as_json:
        print_json({**compared[0], "applied": str(synced.path)})
    else:
        show(store_table(synced))
