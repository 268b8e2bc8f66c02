"""Options of `hvae-codec encode`: what is stored, in what pieces, by whom, and how it is checked."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .options import SplitName


class EmbedName(StrEnum):
    """What a store carries of its model."""

    decoder = "decoder"
    whole = "whole"


class CodeBits(StrEnum):
    """Bits of a stored code."""

    auto = "auto"
    eight = "8"
    sixteen = "16"


Store = Annotated[str, typer.Argument(help="Store to write, such as out.zarr or s3://bucket/out.zarr.")]
Keep = Annotated[str, typer.Option("--keep", help="Share of the latent dimensions to keep.  [default: 3%]")]
Cutoff = Annotated[
    str, typer.Option("--cutoff", help="Or keep what has a higher KL than this, bits per latent dimension.")
]
Tolerance = Annotated[
    str, typer.Option("--tolerance", help="Or keep the least whose NELBO is worse by at most this, such as 0.5%.")
]
Mask = Annotated[
    Path | None, typer.Option("--mask", help="Or keep what this mask keeps, such as RUN/analysis/masks/keep-3.json.")
]
CodeBitsOption = Annotated[
    CodeBits,
    typer.Option(
        "--code-bits",
        help="Bits of a stored code, in all arrays; auto: 8 in those whose codes fit, with a margin. An array in which "
        "a code does not fit is rewritten with 16.",
    ),
]
WorkerOption = Annotated[
    str, typer.Option("--worker", help="Write the row groups of worker k of n processes, such as 0/4.")
]
Evaluate = Annotated[
    str,
    typer.Option(
        "--evaluate",
        help="Held-out images to measure the cutoff's cost on: none, a number, or all, which also stores rate and "
        "distortion of every image.",
    ),
]
Shard = Annotated[int, typer.Option("--shard", min=1, help="Images in a row group, which is written as a whole.")]
Chunk = Annotated[
    int,
    typer.Option("--chunk", min=1, help="Uncompressed bytes of a chunk, at most; a chunk of one image may have more."),
]
Split = Annotated[
    SplitName,
    typer.Option("--split", help="Images to encode: all of DATA, or those of one split; val is --val, if given."),
]
Embed = Annotated[
    EmbedName | None,
    typer.Option(
        "--embed",
        help="Put the model into the store, so that decoding needs no run: what decoding takes, or all of it, which "
        "append and repair take.",
    ),
]
EmbedModel = Annotated[bool, typer.Option("--embed-model", help="The same as --embed whole.")]
Verify = Annotated[
    bool, typer.Option("--verify", help="Decode each row group, read it back, and store what verify --deep compares.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a store that is already there.")]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Write nothing; say what the images are, and what the command would do with them."),
]
