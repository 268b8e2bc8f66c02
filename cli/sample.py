"""`hvae-codec sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .display import console, interruptible, stages, warn_unfinished
from .options import LATEST_RUN, BatchSize, DeviceOption, Model, Seed, torch_device


def command(
    temperature: Annotated[
        str,
        typer.Option(
            "--temperature",
            help="Of the prior (1 is the model's own, 0 its mean): 0.85 for all latent groups; 0.7:0.9 linear over "
            "depth, from the lowest resolution to the highest; or a list, one per latent resolution or one per group.",
        ),
    ] = "0.85",
    output_temperature: Annotated[
        float | None,
        typer.Option(
            "--output-temperature",
            help="Draw pixels from the output distribution at this temperature (the expected image, if not given).",
        ),
    ] = None,
    count: Annotated[int, typer.Option("--n", min=1, help="Images to draw.")] = 64,
    out: Annotated[
        Path,
        typer.Option(
            "--out", help="NAME.png for one grid, NAME.npy for one array, or a folder for one file per image."
        ),
    ] = Path("samples.png"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a grid or array that is there.")] = False,
    model: Model = LATEST_RUN,
    device: DeviceOption = "auto",
    batch_size: BatchSize = None,
    seed: Seed = 0,
) -> None:
    """Draw images from the prior.

    Image i depends on --seed and i alone, not on --n or --batch-size.
    """
    from hvae_codec.cpu import reuse_freed_memory
    from hvae_codec.model.checkpoint import load_model
    from hvae_codec.model.sampling import sample_images
    from hvae_codec.report.counts import count as counted
    from hvae_codec.report.samples import sample_target, write_samples

    reuse_freed_memory()
    hvae = load_model(model, torch_device(device))
    warn_unfinished(hvae)
    target = sample_target(out, count, hvae.config, overwrite=overwrite)
    batches = sample_images(
        hvae, count, temperature, output_temperature=output_temperature, seed=seed, batch_size=batch_size
    )
    with interruptible("Nothing was written."), stages() as stage:
        write_samples(target, batches, stage("Sampling"))
    console().print(f"{out}: {counted(count, 'image')} drawn at temperature {temperature}")
