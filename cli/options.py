"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hvae_codec import config


class CodecName(StrEnum):
    """Numbers that latents are stored as, and how they are packed."""

    int = "int"
    archive = "archive"
    float16 = "float16"
    float32 = "float32"


class GranularityName(StrEnum):
    """Unit that is kept or pruned."""

    variate = "variate"
    position = "position"


class CountName(StrEnum):
    """Unit that `--keep` counts."""

    dimensions = "dimensions"
    variates = "variates"


class GraphName(StrEnum):
    """Whether work is recorded as a CUDA graph."""

    auto = "auto"
    on = "on"
    off = "off"


class SplitName(StrEnum):
    """Part of a data set."""

    all = "all"
    train = "train"
    val = "val"
    test = "test"


# Strings, as a path would turn s3:// into s3:/.
Data = Annotated[
    str,
    typer.Argument(
        help="Folder of images, with splits train/, val/ and test/ if it has these; a .zip; a .tar, or tars as "
        "'x-{000..127}.tar'; Parquet files; an array: .npy, .npz or zarr; or MNIST, CIFAR or ImageNet 32 as published. "
        "Zips, tars and Parquet files may be at URLs, s3:// and gs://."
    ),
]
StoreArgument = Annotated[
    str, typer.Argument(help="Store that encode wrote: a folder, or a URL s3://, gs:// or file://.")
]
Model = Annotated[Path, typer.Option("--model", help="Run whose model to use.")]
StoreModel = Annotated[
    Path | None,
    typer.Option("--model", help="Run whose model encoded the store (the store's own, or the one it names)."),
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="Where to run: cpu, cuda or cuda:N; auto takes a GPU if there is one.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, max=config.LARGEST_SEED, help="Seed of everything random.")]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        min=1,
        help="Images per pass through the model (64; on a GPU 256, or fewer if they are larger than 64 pixels).",
    ),
]
Graph = Annotated[
    GraphName,
    typer.Option(
        "--graph", help="Record the work on a batch as a CUDA graph and replay it for the next ones; auto: on a GPU."
    ),
]
Codec = Annotated[
    CodecName,
    typer.Option(
        "--codec",
        help="int stores codes of a quantiser; archive packs these tighter, for readers that have this package; "
        "float16 and float32 store the latents themselves.",
    ),
]
Step = Annotated[
    str,
    typer.Option(
        "--step",
        help="Quantiser step of --codec int and archive, in posterior standard deviations (averages per variate); "
        "auto: the largest whose images are as near as those of posterior samples, or, of a run with codes, what it "
        "has learned.  [default: auto]",
    ),
]
StepTolerance = Annotated[
    str,
    typer.Option(
        "--step-tolerance",
        help="With --step auto: by how much more distortion may be than that of posterior samples, such as 0.5%."
        "  [default: 0%]",
    ),
]
Granularity = Annotated[
    GranularityName,
    typer.Option("--granularity", help="Keep variates at all their positions, or each latent dimension by itself."),
]
Count = Annotated[
    CountName,
    typer.Option("--count", help="What --keep is a share of: dimensions, or variates as in the published code."),
]
Split = Annotated[SplitName, typer.Option("--split", help="Images of DATA to encode: all, or those of one split.")]
Val = Annotated[
    str | None,
    typer.Option(
        "--val",
        help="Held-out images of their own, as DATA may be: their val or test split, or all. DATA is then for training "
        "and rankings, but for its own val and test splits.",
    ),
]
On = Annotated[
    str | None,
    typer.Option(
        "--on",
        help="Where row groups are worked on: local:N (N processes of this machine), local:gpu (one per GPU), dask, or "
        "a Dask scheduler, tcp://HOST:PORT or its file (.json). Not given: in this process.",
    ),
]
CheckBytes = Annotated[
    bool,
    typer.Option(
        "--check", help="Read the bytes of all images whose checksums are known, whatever the times of their files say."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

LATEST_RUN = Path(config.LATEST_RUN)


def packing(codec: CodecName) -> str:
    """How the chunks of codes are packed."""
    return "archive" if codec == CodecName.archive else "zstd"


def check_on(on: str | None) -> None:
    """Raise `UsageError` if `--on` means nothing, before anything is read."""
    from hvae_codec.engine.where import parse_where

    if on is not None:
        parse_where(on)


def torch_device(device: str, worker: int = 0) -> str:
    """Return `cpu`, `cuda` or `cuda:N`, and raise, as `choose_device` does."""
    from hvae_codec.model.device_choice import choose_device

    return choose_device(device, worker)
