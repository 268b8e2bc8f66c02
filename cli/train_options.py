"""Options of `hvae-codec train`, of which `prune` has those of how a training runs."""

from __future__ import annotations

from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hvae_codec.config import LARGEST_SEED

from .options import GraphName

if TYPE_CHECKING:
    from hvae_codec.train.loop import TrainOptions

DEFAULT_PRESET = "tiny32"


class PrecisionName(StrEnum):
    """Numbers the network computes with."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


Preset = Annotated[str | None, typer.Option("--preset", help=f"Configuration by name ({DEFAULT_PRESET}); see presets.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="Configuration file, .toml or .json.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Change one value: train.batch_size=32 (of all processes together), stage.variates=8, stage32.width=48.",
    ),
]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Updates in all.")]
Precision = Annotated[
    PrecisionName | None,
    typer.Option("--precision", help="Numbers to compute with; auto is bf16 on CPUs made for it, and fp32 elsewhere."),
]
CheckpointActivations = Annotated[
    bool, typer.Option("--checkpoint-activations", help="Compute activations twice: less memory, more time.")
]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the network first: slow to start, faster on GPUs.")]
Graph = Annotated[
    GraphName,
    typer.Option(
        "--graph",
        help="Record a step as a CUDA graph and replay it, several times faster; auto: for one process on one GPU.",
    ),
]
Deterministic = Annotated[
    bool, typer.Option("--deterministic", help="Continue to the last bit on GPUs too; takes a little more memory.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="Folder of the run (runs/PRESET-DATE): config.json, model.safetensors (averaged weights, which all other "
        "commands use), metrics.csv, validation.csv, tensorboard/ and state/. The same command again continues it.",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue --out, or the last run, with its own configuration.")]
AllowOtherData = Annotated[
    bool, typer.Option("--allow-other-data", help="Continue with other images than the run was begun with.")
]
SaveEvery = Annotated[int, typer.Option("--save-every", min=1, help="Steps between states.")]
KeepStates = Annotated[int, typer.Option("--keep-states", min=1, help="Newest states that are not removed.")]
EvalEvery = Annotated[int, typer.Option("--eval-every", min=1, help="Steps between validations.")]
ValidationImages = Annotated[
    int, typer.Option("--validation-images", min=1, help="Held-out images in a validation, at most.")
]
LogEvery = Annotated[int, typer.Option("--log-every", min=1, help="Steps between rows of metrics.csv.")]
MaxSkips = Annotated[
    int, typer.Option("--max-skips", min=1, help="Give up after this many updates were skipped in a row.")
]
Tensorboard = Annotated[bool, typer.Option("--tensorboard/--no-tensorboard", help="Write events for TensorBoard.")]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Threads that read images (one a core, 8 at most).")
]
RunSeed = Annotated[int | None, typer.Option("--seed", min=0, max=LARGEST_SEED, help="Seed of everything random (0).")]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Write nothing; say what the images are, and what training on them would take."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table; with --dry-run.")]


def chosen_options(context: typer.Context, **others: Any) -> TrainOptions:
    """Collect the options of how a training runs, whose names are those of `TrainOptions`, and `others` beside them."""
    from hvae_codec.train.loop import TrainOptions

    names = {field.name for field in fields(TrainOptions)} - {"device", "seed"}
    taken = {name: value for name, value in context.params.items() if name in names}
    taken |= {"graph": context.params["graph"].value, "other_data": context.params["allow_other_data"]}
    return TrainOptions(**taken, **others)
