"""`hvae-codec analyze-kl`."""

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
    Data,
    Device,
    DeviceOption,
    Model,
    Seed,
    SkipBroken,
    Step,
    torch_device,
)


def command(
    data: Data,
    keep: Annotated[
        str, typer.Option("--keep", help="Shares of the latent dimensions to try, separated by commas.")
    ] = "1%,2%,3%,5%,7%,10%,20%,100%",
    images: Annotated[
        int, typer.Option("--images", min=1, help="Images at most, for the ranking and for the table each.")
    ] = 1000,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for tables and pictures (RUN/analysis).")] = None,
    codec: Codec = CodecName.int,
    step: Step = 1.0,
    model: Model = LATEST_RUN,
    device: DeviceOption = Device.auto,
    batch_size: BatchSize = 64,
    seed: Seed = 0,
    skip_broken: SkipBroken = False,
) -> None:
    """Rank latent dimensions by KL, and show what keeping only the best costs.

    Variates are ranked by their KL on training images. The table is of held-out images: negative ELBO, reconstruction
    and KL in bits/dim; PSNR, SSIM and bytes of images really encoded and decoded at that cutoff. Writes cutoffs.csv,
    cutoffs.json, cutoffs.png and reconstructions.png, and keeps the ranking in the run for encode.
    """
    from hvae_codec.encode.latents import make_codec
    from hvae_codec.images import open_images
    from hvae_codec.model.checkpoint import load_model
    from hvae_codec.prune.kl_stats import save_kl_stats
    from hvae_codec.prune.cutoffs import parse_keep
    from hvae_codec.report.analysis import FOLDER, analyze, rank, ranking_path
    from hvae_codec.report.plots import save_cutoff_curve, save_reconstruction_sheet
    from hvae_codec.report.tables import cutoff_table, save_table

    keeps = sorted({parse_keep(part) for part in keep.split(",")})
    latent_codec = make_codec(codec.value, step)
    hvae = load_model(model, torch_device(device))
    run = hvae.run or model
    config = hvae.config
    source = open_images(data, size=config.image_size, channels=config.channels, skip_broken=skip_broken)
    held_out = source.split("val").evenly(images)
    with interruptible("Nothing was written."), stages() as stage:
        stats = rank(hvae, source.split("train"), images, batch_size, seed, stage)
        analysis = analyze(hvae, stats, held_out, keeps, latent_codec, batch_size=batch_size, seed=seed, stage=stage)
    save_kl_stats(ranking_path(run), stats)
    folder = out or run / FOLDER
    about = {"images": len(held_out), "ranking_images": stats.images, "codec": latent_codec.to_dict(), "seed": seed}
    save_table(folder, analysis.table, about | {"model_hash": stats.model_hash})
    curve = save_cutoff_curve(folder, analysis.table)
    sheet = save_reconstruction_sheet(folder, analysis.originals, analysis.decoded, keeps)
    report_source(source)
    console().print(cutoff_table(analysis.table, about))
    console().print(f"Curve: {curve}\nReconstructions: {sheet}\nRanking, for encode: {ranking_path(run)}")
