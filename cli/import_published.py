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
    """Which of a checkpoint's weights."""

    ema = "ema"
    raw = "raw"


def command(
    checkpoint: Annotated[Path, typer.Argument(help="Published checkpoint.")],
    config: Annotated[Path, typer.Option("--config", help="Its .cfg file.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the run to write, such as runs/NAME.")],
    weights: Annotated[Weights, typer.Option("--weights", help="Averaged weights, or the last step's.")] = Weights.ema,
) -> None:
    """Make a run of a published Efficient-VDVAE checkpoint; nothing in the files is executed."""
    from hvae_codec.model.checkpoint import point_latest, save_model
    from hvae_codec.published.efficient_vdvae import import_published

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists; give another --out")
    imported, tensors = import_published(checkpoint, config, weights.value)
    save_model(out, imported, tensors)
    point_latest(LATEST_RUN, out)
    count = sum(tensor.numel() for tensor in tensors.values())
    groups = len(imported.model.groups)
    console().print(
        f"{out}: {count:,} parameters, {groups} latent groups, {imported.model.latent_dims:,} latent dimensions"
    )
