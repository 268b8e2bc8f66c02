"""The learning rate, the KL's weight and the balance of groups, which change with the step."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from ..config import Config, LossConfig, OptimizerConfig


class StepNumbers(NamedTuple):
    """What changes with the step; rate and weight may be scalar tensors, which a recorded step reads anew each time."""

    learning_rate: float | Tensor
    kl_weight: float | Tensor
    balanced: bool  # whether the groups' KL is balanced

    @classmethod
    def at(cls, config: Config, step: int) -> StepNumbers:
        """Those of `step`, counted from 1."""
        balanced = config.loss.balance_groups and step <= config.loss.balance_steps
        return cls(learning_rate(config.optimizer, step), kl_weight(config.loss, step), balanced)


def kl_weight(config: LossConfig, step: int) -> float:
    """Compute beta(step), the weight of the KL in the loss, in [0, 1] (NVAE's schedules).

    Linear: clamp((step - start) / (start + length), beta_min, 1). Logistic: 1 / (1 + exp(-rate (step - activation))).
    """
    if config.kl_schedule == "constant":
        return 1.0
    if config.kl_schedule == "logistic":
        # The exponent is bounded because exp would overflow long after the weight is 0.
        return 1.0 / (1.0 + math.exp(min(-config.growth_rate * (step - config.activation_step), 700.0)))
    length = config.anneal_start + config.anneal_steps
    beta = (step - config.anneal_start) / length if length else 1.0
    return min(max(beta, config.beta_min), 1.0)


def learning_rate(config: OptimizerConfig, step: int) -> float:
    """Compute the rate at `step` (from 1): linear warm-up, constant, then half a cosine to the minimum."""
    warm = step - 1 if config.warmup_from_zero else step
    if warm < config.warmup_steps:
        return config.learning_rate * warm / config.warmup_steps
    if config.schedule == "constant" or step <= config.decay_start:
        return config.learning_rate
    progress = min((step - config.decay_start) / max(config.decay_steps, 1), 1.0)
    span = config.learning_rate - config.min_learning_rate
    return config.min_learning_rate + span * (1.0 + math.cos(math.pi * progress)) / 2.0
