"""The KL's weight and the learning rate, which change with the step."""

from __future__ import annotations

import math

from ..config import LossConfig, OptimizerConfig


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
    if step < config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    if config.schedule == "constant" or step <= config.decay_start:
        return config.learning_rate
    progress = min((step - config.decay_start) / max(config.decay_steps, 1), 1.0)
    span = config.learning_rate - config.min_learning_rate
    return config.min_learning_rate + span * (1.0 + math.cos(math.pi * progress)) / 2.0
