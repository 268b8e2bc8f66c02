"""`hvae-codec look`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .display import interruptible, print_json, show, stages
from .options import AsJson, BatchSize, DeviceOption, Seed, StoreArgument, torch_device


def command(
    store: StoreArgument,
    worst: Annotated[
        int, typer.Option("--worst", min=1, help="Images with the highest distortion and rate, and with the lowest.")
    ] = 64,
    pairs: Annotated[int, typer.Option("--pairs", min=1, help="Pairs of images whose kept latents are nearest.")] = 24,
    images: Annotated[
        int,
        typer.Option(
            "--images",
            min=1,
            help="Images to compare with each other, at most; fewer if their latents would take more than 512 MiB.",
        ),
    ] = 10_000,
    out: Annotated[
        str | None,
        typer.Option("--out", help="Page to write.  [default: out-look.html beside out.zarr]", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that look has not written.")] = False,
    as_json: AsJson = False,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Run whose model encoded the store (the store's own, or the one it names)."),
    ] = None,
    device: DeviceOption = "auto",
    batch_size: BatchSize = None,
    seed: Seed = 0,
) -> None:
    """Write a page to look at a store with: one HTML file that works offline.

    It has decoded images of each label; the worst and best by distortion and by rate, if the store has these (encode
    --evaluate all); near duplicates by their kept latents; and of each image what the latent groups add, one by one.
    """
    from hvae_codec.cpu import reuse_freed_memory
    from hvae_codec.encode.encoded_store import open_store
    from hvae_codec.report.look import check_page, default_page, look, page_location
    from hvae_codec.report.look_facts import look_data, look_sentences

    opened = open_store(store)
    page = default_page(opened.path) if out is None else page_location(out)
    check_page(page, opened.path, overwrite=overwrite)
    reuse_freed_memory()
    decoder = opened.load_decoder(torch_device(device), model)
    with interruptible("No page was written."), stages() as stage:
        found = look(
            opened,
            page,
            decoder,
            worst=worst,
            pairs=pairs,
            images=images,
            seed=seed,
            batch_size=batch_size,
            overwrite=overwrite,
            stage=stage,
        )
    if as_json:
        print_json(look_data(opened, found))
        return
    show(*look_sentences(opened, found))
