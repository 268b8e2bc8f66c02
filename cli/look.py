"""`hvae-codec look`."""

from __future__ import annotations

from typing import Annotated

import typer

from .display import interruptible, print_json, show, stages
from .options import AsJson, BatchSize, DeviceOption, Seed, StoreArgument, StoreModel, torch_device

Worst = Annotated[
    int, typer.Option("--worst", min=1, help="Images with the highest distortion and rate, and with the lowest.")
]
Pairs = Annotated[int, typer.Option("--pairs", min=1, help="Pairs of images whose kept latents are nearest.")]
Compared = Annotated[
    int,
    typer.Option(
        "--images",
        min=1,
        help="Images to compare with each other, at most; fewer if their latents would take more than 512 MiB.",
    ),
]
Out = Annotated[
    str | None,
    typer.Option("--out", help="Page to write.  [default: out-look.html beside out.zarr]", show_default=False),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a file that look has not written.")]


def command(
    store: StoreArgument,
    worst: Worst = 64,
    pairs: Pairs = 24,
    images: Compared = 10_000,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    model: StoreModel = None,
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
