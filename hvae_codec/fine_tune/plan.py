"""What a pruning is to do: what is kept, in how many stages, what pruned variates become, and for how many steps."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import UsageError
from ..prune.cutoffs import CutoffSpec

SHARE = 0.3  # of the run's own steps, if no number of steps is given

Collapse = Literal["mean", "sample"]
"""What a pruned variate is: the prior's mean or a sample of the prior."""


@dataclass(frozen=True, kw_only=True)
class PrunePlan:
    """What to prune to, and how."""

    cutoffs: Sequence[CutoffSpec]  # of each stage, from mild to strict; the last one is what is kept
    steps: int | None = None  # updates in all, shared out among the stages; None: `share` of the run's own
    share: float = SHARE  # of the run's own steps, 0 to 1
    collapse: Collapse = "mean"  # what a pruned variate is while training: the prior's mean, or a sample of it
    codes: bool = False  # whether kept variates are rounded to codes while training, with learned steps
    slim: bool | None = None  # whether the run becomes physically smaller; None: if `collapse` is the mean
    settings: Sequence[str] = ()  # changes to how it is trained, such as `optimizer.learning_rate=0.0001`
    control: bool = False  # whether the whole model is trained for as many steps, to compare with
    images: int = 1000  # for the ranking and for the comparison each, at most
    pictures: int = 256  # of those compared, at most, that are also encoded and decoded
    batch_size: int | None = None  # images through the model at once where nothing is trained
    seed: int = 0  # of everything random

    def __post_init__(self) -> None:
        if not self.cutoffs:
            raise UsageError("nothing says what to keep; give --keep, such as --keep 1%")
        for setting in self.settings:
            if not setting.strip().startswith(("optimizer.", "loss.", "train.")):
                raise UsageError(f"--set {setting}: prune changes keys of optimizer, loss and train alone")
            if setting.strip().startswith("train.steps"):
                raise UsageError(f"--set {setting}: give --steps, of all stages together")
        if self.codes and self.collapse == "sample":
            raise UsageError(
                "--codes trains what decode does, which puts the prior's mean where variates were pruned; "
                "leave out --collapse sample"
            )
        if self.slim is False and self.collapse == "mean":
            raise UsageError(
                "a model whose pruned variates are at the prior's mean does without them: --collapse mean writes a "
                "slim run; give --collapse sample for a whole one"
            )
        if any(spec.granularity == "position" for spec in self.cutoffs):
            raise UsageError("prune takes away whole variates; leave out --granularity position")
        shares = [spec.keep for spec in self.cutoffs if spec.keep is not None]
        if any(later >= earlier for earlier, later in itertools.pairwise(shares)):
            raise UsageError("the stages of --schedule must keep less and less, such as 10%,3%,1%")

    @property
    def ends_slim(self) -> bool:
        """Whether the run that is written is slim."""
        return self.collapse == "mean" if self.slim is None else self.slim
