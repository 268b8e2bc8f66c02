"""How a pruned model is trained on: steps, learning rate, weights of the loss, moving average."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

from ..config import Config, LossConfig
from ..errors import UsageError
from ..train.state import steps_taken

PEAK = 1 / 8
"""Learning rate after warm-up, as a share of the run's own; docs/pruning.md compares it with another."""
LAST = 1 / 25
"""Learning rate of the last step, as a share of the highest."""

_WARMUP = 0.1  # share of the steps in which the rate rises: the optimiser's moments are new
_LONGEST_AVERAGE = 0.1  # share of the steps that the moving average of the weights remembers, at most


def stage_steps(steps: int, stages: int) -> list[int]:
    """Share out `steps` among `stages`, the first ones taking what is over.

    >>> stage_steps(10, 3)
    [4, 3, 3]

    Raises `UsageError` if a stage would have none.
    """
    if steps < stages:
        raise UsageError(f"{steps} steps are too few for {stages} stages; give --steps {stages} or more")
    bounds = [-(-steps * stage // stages) for stage in range(stages + 1)]
    return [b - a for a, b in itertools.pairwise(bounds)]


def share_of_training(run: Path, config: Config, share: float) -> int:
    """Count the steps that are `share` (0 to 1) of what `run` was trained with; of an imported one, of its preset's."""
    return max(1, round(share * (steps_taken(run) or config.train.steps)))


def fine_tuning_config(config: Config, steps: int) -> Config:
    """Make the configuration of `steps` more steps: a short warm-up, then half a cosine, and the whole KL throughout.

    The moving average forgets within a tenth of the steps, if that is shorter than the run's own memory.
    """
    peak, warmup = PEAK * config.optimizer.learning_rate, math.ceil(_WARMUP * steps)
    optimizer = replace(
        config.optimizer,
        learning_rate=peak,
        schedule="cosine",
        warmup_steps=float(warmup),
        decay_start=warmup,
        decay_steps=max(1, steps - warmup),
        min_learning_rate=LAST * peak,
    )
    decay = min(config.train.ema_decay, max(0.0, 1.0 - 1.0 / (_LONGEST_AVERAGE * steps)))
    train = replace(config.train, steps=steps, ema_decay=decay)
    loss = LossConfig(kl_schedule="constant", balance_groups=False)
    return replace(config, optimizer=optimizer, train=train, loss=loss)
