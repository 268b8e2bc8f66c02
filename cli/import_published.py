"""`hvae-codec import`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hvae_codec.errors import UsageError

from .display import console
from .options import LATEST_RUN


class Weights(StrEnum):
    """Which of a model's weights."""

    ema = "ema"
    raw = "raw"


class Bins(StrEnum):
    """Bins of colour values in the output distribution."""

    published = "published"
    exact = "exact"


def command(
    checkpoint: Annotated[Path, typer.Argument(help="Published checkpoint, such as a VDVAE's -model-ema.th.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the run to write, such as runs/NAME.")],
    log: Annotated[
        Path | None,
        typer.Option("--log", help="VDVAE: its -log.jsonl with the hyper-parameters.  [default: the one beside it]"),
    ] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="VDVAE without a log: a preset in its place, such as cifar10_vdvae.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="Efficient-VDVAE: its .cfg file.")] = None,
    weights: Annotated[
        Weights | None,
        typer.Option(
            "--weights", help="Averaged weights, or the last step's; a file of VDVAE has one of them.  [default: ema]"
        ),
    ] = None,
    bins: Annotated[
        Bins,
        typer.Option(
            "--bins", help="Bins of the NELBO below 8 bits: published ones overlap, exact ones make a distribution."
        ),
    ] = Bins.published,
) -> None:
    """Make a run of a published VDVAE or Efficient-VDVAE checkpoint; nothing in the files is executed."""
    from hvae_codec.model.checkpoint import point_latest
    from hvae_codec.published.import_checkpoint import ImportOptions, import_checkpoint

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists; give another --out")
    options = ImportOptions(
        config=config, log=log, preset=preset, weights=weights.value if weights else None, bins=bins.value
    )
    imported = import_checkpoint(checkpoint, options)
    imported.save(out)
    point_latest(LATEST_RUN, out)
    model = imported.config.model
    count = sum(tensor.numel() for tensor in imported.weights.values())
    sizes = f"{count:,} parameters, {len(model.groups)} latent groups, {model.latent_dims:,} latent dimensions"
    console().print(f"{out}: {sizes}", str(imported.record), *imported.notes, sep="\n")
