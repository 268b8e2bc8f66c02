"""`hvae-codec encode`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .display import console, interruptible, report_source, stages
from .options import (
    LATEST_RUN,
    BatchSize,
    Codec,
    CodecName,
    Data,
    Device,
    DeviceOption,
    Model,
    Seed,
    SkipBroken,
    Step,
    torch_device,
)


class SplitName(StrEnum):
    """Which images of a data set."""

    all = "all"
    train = "train"
    val = "val"


def command(
    data: Data,
    store: Annotated[Path, typer.Argument(help="Store to write, such as out.zarr.")],
    keep: Annotated[str, typer.Option("--keep", help="Share of the latent dimensions to keep.")] = "3%",
    codec: Codec = CodecName.int,
    step: Step = 1.0,
    split: Annotated[
        SplitName, typer.Option("--split", help="Encode all images, or those of one split.")
    ] = SplitName.all,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a store that is already there.")] = False,
    model: Model = LATEST_RUN,
    device: DeviceOption = Device.auto,
    batch_size: BatchSize = 64,
    seed: Seed = 0,
    skip_broken: SkipBroken = False,
) -> None:
    """Encode images into a store of their most informative latents.

    Prints what this cutoff costs on held-out images and what the store takes on disk. An interrupted encode goes on
    when the same command is run again.
    """
    from hvae_codec.encode.latents import make_codec
    from hvae_codec.encode.pipeline import EncodeOptions, encode
    from hvae_codec.encode.writer import check_target
    from hvae_codec.images import open_images
    from hvae_codec.model.checkpoint import load_model
    from hvae_codec.prune.cutoffs import parse_keep
    from hvae_codec.report.encoded import cost_sentence, cutoff_cost, find_ranking, make_mask, store_table

    fraction = parse_keep(keep)
    check_target(store, overwrite)
    latent_codec = make_codec(codec.value, step)
    hvae = load_model(model, torch_device(device))
    config = hvae.config
    source = open_images(data, size=config.image_size, channels=config.channels, skip_broken=skip_broken)
    out = console()
    with interruptible("The same command goes on where it stopped."), stages() as stage:
        stats, note = find_ranking(hvae, source, batch_size, seed, stage)
        mask, mask_note = make_mask(stats, fraction)
        # Before the long part, so that its price is known and nothing is left to fail once the store stands.
        cost = cutoff_cost(hvae, source, stats, mask, batch_size, seed, stage("NELBO at this cutoff"))
        out.print(*(line for line in (note, mask_note, cost_sentence(cost, mask)) if line), sep="\n")
        written = encode(
            hvae,
            source.split(split.value),
            store,
            mask=mask,
            codec=latent_codec,
            stats=stats,
            options=EncodeOptions(batch_size, overwrite),
            progress=stage("Encoding"),
        )
    report_source(source)
    out.print(store_table(written))
