"""`hvae-codec encode`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .display import console, interruptible, report_source, stages
from .options import (
    LATEST_RUN,
    BatchSize,
    Codec,
    CodecName,
    Count,
    CountName,
    Data,
    Device,
    DeviceOption,
    Granularity,
    GranularityName,
    Model,
    Seed,
    SkipBroken,
    Split,
    SplitName,
    Step,
)
from .together import together


def command(
    data: Data,
    store: Annotated[str, typer.Argument(help="Store to write, such as out.zarr or s3://bucket/out.zarr.")],
    keep: Annotated[str, typer.Option("--keep", help="Share of the latent dimensions to keep.  [default: 3%]")] = "",
    cutoff: Annotated[
        str, typer.Option("--cutoff", help="Or keep what has a higher KL than this, bits per latent dimension.")
    ] = "",
    tolerance: Annotated[
        str, typer.Option("--tolerance", help="Or keep the least whose NELBO is worse by at most this, such as 0.5%.")
    ] = "",
    mask: Annotated[
        Path | None, typer.Option("--mask", help="Or keep what this mask does, such as RUN/analysis/masks/keep-3.json.")
    ] = None,
    granularity: Granularity = GranularityName.variate,
    count: Count = CountName.dimensions,
    codec: Codec = CodecName.int,
    step: Step = 1.0,
    split: Split = SplitName.all,
    worker: Annotated[
        str, typer.Option("--worker", help="Write the row groups of worker k of n processes, such as 0/4.")
    ] = "",
    evaluate: Annotated[
        str,
        typer.Option(
            "--evaluate",
            help="Held-out images to measure the cutoff's cost on: none, a number, or all, which also stores rate and "
            "distortion of every image.",
        ),
    ] = "1000",
    shard: Annotated[int, typer.Option("--shard", min=1, help="Images in a row group, written as one.")] = 256,
    chunk: Annotated[
        int, typer.Option("--chunk", min=1, help="Bytes, uncompressed, that a chunk of several images may have.")
    ] = 131072,
    embed_model: Annotated[
        bool, typer.Option("--embed-model", help="Put the model into the store: decoding it then needs no run.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Decode each row group, read it back, and note what verify --deep compares."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a store that is already there.")] = False,
    model: Model = LATEST_RUN,
    device: DeviceOption = Device.auto,
    batch_size: BatchSize = 64,
    seed: Seed = 0,
    skip_broken: SkipBroken = False,
) -> None:
    """Encode images into a store of their most informative latents.

    Prints what this cutoff costs on held-out images and what the store takes on disk. An interrupted encode goes on
    when the same command is run again. Several processes write one store: torchrun --nproc-per-node N -m
    hvae_codec_cli encode ..., or this command with --worker 0/N to N-1/N, in any order and on any machines that see the
    same folders.
    """
    from hvae_codec.cpu import keep_freed_memory
    from hvae_codec.encode.latents import make_codec
    from hvae_codec.encode.pipeline import EncodeOptions, encode_share
    from hvae_codec.encode.targets import check_place
    from hvae_codec.encode.workers import share_of
    from hvae_codec.images import open_images
    from hvae_codec.model.checkpoint import load_model
    from hvae_codec.prune.cutoffs import read_wish
    from hvae_codec.report.cutoff_cost import choose_and_measure, images_to_evaluate
    from hvae_codec.report.encoded import find_ranking, share_sentence, store_table

    wish = read_wish(keep, cutoff, tolerance, mask, granularity.value, count.value)
    measured = images_to_evaluate(evaluate)
    latent_codec = make_codec(codec.value, step)
    options = EncodeOptions(batch_size, overwrite, shard, chunk, evaluate == "all", seed, embed_model, verify)
    keep_freed_memory()
    with together(device) as processes:
        share = share_of(worker, processes)
        if not worker:
            processes.on_first(lambda: check_place(store, overwrite))
        hvae = load_model(model, processes.device)
        config, out = hvae.config, console()
        source = open_images(data, size=config.image_size, channels=config.channels, skip_broken=skip_broken)
        advice = "The same command goes on where it stopped."
        with interruptible(advice), stages(quiet=not processes.is_first) as stage:
            stats, note = processes.on_first(lambda: find_ranking(hvae, source, batch_size, seed, stage))
            # Before the long part, so that its price is known and nothing is left to fail once the store stands.
            kept, sentences = processes.on_first(
                lambda: choose_and_measure(
                    wish, hvae, stats, source, batch_size, seed, stage, 0 if share.number else measured
                )
            )
            if processes.is_first:
                out.print(note, *sentences, sep="\n")
            written = encode_share(
                hvae,
                source.split(split.value),
                store,
                share,
                mask=kept,
                codec=latent_codec,
                stats=stats,
                options=options,
                progress=stage("Encoding"),
            )
        if written is not None:
            report_source(source)
            out.print(store_table(written))
        elif worker:
            out.print(share_sentence(store, share))
