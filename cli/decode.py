"""`hvae-codec decode`."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Annotated

import typer

from hvae_codec.errors import UsageError

from .display import CONTINUES, console, interruptible, print_json, stages, warn
from .image_range import parse_range
from .options import AsJson, BatchSize, DeviceOption, Graph, GraphName, StoreArgument, StoreModel, torch_device


class FormatName(StrEnum):
    """Files that decoded images are written to."""

    png = "png"
    npy = "npy"


def command(
    store: StoreArgument,
    out: Annotated[str, typer.Argument(help="Folder to write; it must not exist, or be empty.")],
    images: Annotated[str, typer.Option("--images", help="Which images: all, 7, 0:100 or 0:1000:10.")] = "all",
    file_format: Annotated[
        FormatName, typer.Option("--format", help="png restores names and class folders; npy is one array.")
    ] = FormatName.png,
    as_json: AsJson = False,
    model: StoreModel = None,
    device: DeviceOption = "auto",
    batch_size: BatchSize = None,
    graph: Graph = GraphName.auto,
) -> None:
    """Decode the images of a store, under their own names.

    An interrupted decode continues if the same command is run again.
    """
    from hvae_codec.cpu import reuse_freed_memory
    from hvae_codec.encode.decode_to_files import decode_to_folder
    from hvae_codec.encode.encoded_store import open_store
    from hvae_codec.model.recorded import Recording
    from hvae_codec.report.counts import count as counted
    from hvae_codec.report.finished import decoded_data
    from hvae_codec.storage.location import location_of

    start, folder = time.monotonic(), location_of(out).folder
    if folder is None:
        raise UsageError(f"{out} is in a bucket; decode writes into a folder of this machine, so give one")
    opened = open_store(store)
    wanted = parse_range(images, len(opened))
    reuse_freed_memory()
    hvae = opened.load_decoder(torch_device(device), model)
    hvae.recording = Recording(graph.value, warn)
    with interruptible(CONTINUES), stages() as stage:
        count = decode_to_folder(
            opened,
            hvae,
            folder,
            images=wanted,
            file_format=file_format.value,
            batch_size=batch_size,
            progress=stage.continued("Decoding"),
        )
    if as_json:
        print_json(decoded_data(opened, out, count, file_format.value, time.monotonic() - start))
        return
    console().print(f"{out}: {counted(count, 'decoded image')}")
