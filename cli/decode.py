"""`hvae-codec decode`."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hvae_codec.errors import UsageError

from .display import CONTINUES, console, interruptible, stages, warn
from .options import BatchSize, DeviceOption, Graph, GraphName, StoreArgument, torch_device


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
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Run whose model encoded the store (the store's own, or the one it names)."),
    ] = None,
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
    from hvae_codec.storage.location import location_of

    folder = location_of(out).folder
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
            progress=stage("Decoding"),
        )
    console().print(f"{out}: {counted(count, 'decoded image')}")


def parse_range(text: str, count: int) -> range:
    """Read image numbers from `all`, `7`, `0:100` or `0:1000:10`, as Python slices have them.

    >>> parse_range("0:100:10", 50)
    range(0, 50, 10)

    Raises `UsageError` if `text` is none of these or names no image.
    """
    if not re.fullmatch(r"all|-?\d+|-?\d*:-?\d*(:([1-9]\d*)?)?", text):
        raise UsageError(f"--images is {text!r}; give all, a number, or a range such as 0:100")
    parts = [int(part) if part else None for part in text.replace("all", ":").split(":")]
    everything = range(count)
    chosen = everything[slice(*parts)] if len(parts) > 1 else _single(everything, parts[0] or 0)
    if not chosen:
        raise UsageError(f"--images {text} names no image; the store has {count}, numbered from 0")
    return chosen


def _single(everything: range, number: int) -> range:
    index = number + len(everything) if number < 0 else number
    return everything[index : index + 1] if index >= 0 else range(0)
