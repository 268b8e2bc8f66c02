"""`hvae-codec sample-data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hvae_codec.config import LARGEST_SEED

from .display import console, interruptible, progress_bar


def command(
    folder: Annotated[Path, typer.Argument(help="Folder to write; it gets train/ and val/.")],
    size: Annotated[int, typer.Option("--size", help="Height and width of the patches, in pixels.")] = 32,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=LARGEST_SEED, help="Decides which patches of the grid are taken.")
    ] = 0,
) -> None:
    """Write patches of real photographs, as PNG files in class folders, to try everything on.

    The photographs come with scikit-image and scikit-learn. Of each, a strip that no training patch touches is held
    out in val/.
    """
    from hvae_codec.data.sample import write_sample_data

    with interruptible("Nothing was written."), progress_bar("patches") as bar:
        task = bar.add_task("Writing patches", total=None)
        counts = write_sample_data(
            folder, size=size, seed=seed, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    console().print(
        f"{folder}: {counts.train:,} training and {counts.val:,} held-out patches of {size} × {size} pixels"
    )
