"""Options of `hvae-codec prune` alone."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class CollapseName(StrEnum):
    """What a pruned variate is."""

    mean = "mean"
    sample = "sample"


Keep = Annotated[str, typer.Option("--keep", help="Share of the unpruned model's latent dimensions to keep, as 1%.")]
Cutoff = Annotated[
    str, typer.Option("--cutoff", help="Or keep what has a higher KL than this, bits per latent dimension.")
]
Tolerance = Annotated[
    str, typer.Option("--tolerance", help="Or keep the least whose NELBO is worse by at most this, such as 0.5%.")
]
Mask = Annotated[Path | None, typer.Option("--mask", help="Or keep what this mask of analyze-kl keeps.")]
Schedule = Annotated[
    str,
    typer.Option("--schedule", help="Or prune in stages, such as 10%,3%,1%: each is ranked anew, pruned and trained."),
]
Steps = Annotated[
    int | None, typer.Option("--steps", min=1, help="Updates of all stages together (a share of the run's own).")
]
Share = Annotated[str, typer.Option("--share", help="Updates as a share of the steps that the run was trained for.")]
Codes = Annotated[
    bool,
    typer.Option("--codes", help="Round kept latents to codes while training, with a learned step for each variate."),
]
Collapse = Annotated[
    CollapseName,
    typer.Option(
        "--collapse",
        help="What a pruned variate is: the prior's mean (a smaller model of its own), or a sample of the prior (a "
        "bound of the whole model).",
    ),
]
Slim = Annotated[
    bool | None,
    typer.Option("--slim/--no-slim", help="Write a run without what was pruned.  [default: if --collapse mean]"),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change one value of the training, such as optimizer.learning_rate=0.0002."),
]
Control = Annotated[
    bool, typer.Option("--control", help="Also train the whole model for as many steps, and compare with that.")
]
Out = Annotated[
    Path | None, typer.Option("--out", help="Folder of the pruned run (RUN-pruned). The same command again continues.")
]
