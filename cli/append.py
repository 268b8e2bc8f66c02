"""`hvae-codec append`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .display import console, interruptible, report_source, stages
from .options import (
    BatchSize,
    Data,
    Device,
    DeviceOption,
    Seed,
    SkipBroken,
    Split,
    SplitName,
    StoreArgument,
    torch_device,
)


def command(
    data: Data,
    store: StoreArgument,
    split: Split = SplitName.all,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Run whose model encoded the store (the store's own, or the one it names)."),
    ] = None,
    device: DeviceOption = Device.auto,
    batch_size: BatchSize = 64,
    seed: Seed = 0,
    skip_broken: SkipBroken = False,
) -> None:
    """Add images to a store, with the model, mask and codec that it was made with.

    The store stays readable, and has the new images all at once. An interrupted append goes on when the same command
    is run again.
    """
    from hvae_codec.cpu import keep_freed_memory
    from hvae_codec.encode.append import append, open_to_append
    from hvae_codec.images import open_images
    from hvae_codec.model.checkpoint import load_model
    from hvae_codec.report.encoded import store_table

    opened = open_to_append(store)
    keep_freed_memory()
    hvae = load_model(model, torch_device(device)) if model else opened.load_model(torch_device(device))
    config = hvae.config
    source = open_images(data, size=config.image_size, channels=config.channels, skip_broken=skip_broken)
    with interruptible("The same command goes on where it stopped."), stages() as stage:
        longer = append(
            hvae, source.split(split.value), store, batch_size=batch_size, seed=seed, progress=stage("Encoding")
        )
    report_source(source)
    console().print(store_table(longer))
