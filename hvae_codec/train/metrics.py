"""The numbers of each training step, read from the device when somebody asks for one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..config import Config
from .optimizer import FlatOptimizer
from .schedules import kl_weight, learning_rate
from .update import StepResult

SCALARS = ("nelbo", "rate", "distortion", "loss", "grad_norm", "learning_rate", "beta")
"""Attributes of `StepMetrics` that are one real number each."""

ACTIVE_NATS = 0.01  # a latent group whose KL is above this many nats per image is active: it carries information


def _number(index: int, kind: type[float] = float) -> Any:
    """Make an attribute of the number at `index` of what `packed` gives."""
    return property(lambda metrics: kind(metrics._read[index]))


class StepMetrics:
    """The numbers of one step, averaged over the batch.

    They are read from the device when the first is asked for, which waits for the step; so ask before the next, seldom.
    """

    loss: float = _number(0)  # nats/dim, with the KL's weights of this step
    distortion: float = _number(1)  # bits/dim
    grad_norm: float = _number(2)  # global norm before clipping
    skipped: bool = _number(3, bool)  # whether the update was left out: the norm not finite, or at the threshold
    skipped_so_far: int = _number(4, int)  # updates left out since the run began
    skipped_in_a_row: int = _number(5, int)  # updates left out since the last one that was made

    def __init__(self, step: int, numbers: Callable[[], Tensor], config: Config) -> None:
        """`numbers` gives what `packed` does."""
        self.step = step
        self.learning_rate = learning_rate(config.optimizer, step)
        self.beta = kl_weight(config.loss, step)
        """The KL's weight in the loss."""
        self._numbers, self._least = numbers, ACTIVE_NATS / config.model.nats_per_bit_dim

    @cached_property
    def _read(self) -> list[float]:
        return self._numbers().tolist()

    @property
    def group_rates(self) -> list[float]:
        """KL of each latent group, bits/dim, in top-down order."""
        return self._read[6:]

    @property
    def rate(self) -> float:
        """bits/dim."""
        return sum(self.group_rates)

    @property
    def nelbo(self) -> float:
        """bits/dim."""
        return self.rate + self.distortion

    @property
    def active_groups(self) -> int:
        """Latent groups with a KL above `ACTIVE_NATS` nats per image."""
        return sum(rate > self._least for rate in self.group_rates)


@torch.no_grad()
def packed(result: StepResult, optimizer: FlatOptimizer) -> Tensor:
    """Pack the numbers of `StepMetrics` into one tensor on the device: one transfer brings them all."""
    counters = (optimizer.skipped, optimizer.skipped_in_a_row)
    scalars = (result.loss, result.distortion, result.grad_norm, result.skipped, *counters)
    return torch.cat([torch.stack([scalar.double() for scalar in scalars]), result.rate.double()])
