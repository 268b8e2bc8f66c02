"""Options that several commands share, and what their texts mean."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hvae_codec import config
from hvae_codec.errors import UsageError


class Device(StrEnum):
    """Where the model runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class CodecName(StrEnum):
    """How latents are stored."""

    int = "int"
    float16 = "float16"
    float32 = "float32"


class GranularityName(StrEnum):
    """What is kept or pruned as one."""

    variate = "variate"
    position = "position"


class CountName(StrEnum):
    """What a keep share is a share of."""

    dimensions = "dimensions"
    variates = "variates"


class SplitName(StrEnum):
    """Which images of a data set."""

    all = "all"
    train = "train"
    val = "val"


Data = Annotated[
    Path, typer.Argument(help="Folder of images (train/ and val/ below it are used as such), .npy, .npz or zarr array.")
]
# Text: a path would make s3:// into s3:/.
StoreArgument = Annotated[
    str, typer.Argument(help="Store that encode wrote: a folder, or a URL s3://, gs:// or file://.")
]
Model = Annotated[Path, typer.Option("--model", help="Run whose model to use.")]
DeviceOption = Annotated[Device, typer.Option("--device", help="Where to run; auto takes a GPU if there is one.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Images through the model at once.")]
Codec = Annotated[
    CodecName, typer.Option("--codec", help="int stores codes of a quantiser, float16 and float32 the latents.")
]
Step = Annotated[float, typer.Option("--step", help="Quantiser step of --codec int, in average posterior stds.")]
Granularity = Annotated[
    GranularityName,
    typer.Option("--granularity", help="Keep variates at all their positions, or each latent dimension by itself."),
]
Count = Annotated[
    CountName,
    typer.Option("--count", help="What --keep is a share of: dimensions, or variates as in the published code."),
]
Split = Annotated[SplitName, typer.Option("--split", help="Encode all images, or those of one split.")]
SkipBroken = Annotated[
    bool, typer.Option("--skip-broken", help="Leave out image files that cannot be decoded, and count them.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

LATEST_RUN = Path(config.LATEST_RUN)


def torch_device(device: Device) -> str:
    """Return `cpu` or `cuda`; raises `UsageError` if a GPU is asked for and there is none."""
    import torch

    if device == Device.cuda and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no GPU here; give --device cpu, or install a CUDA build of torch")
    if device == Device.auto:
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device.value
