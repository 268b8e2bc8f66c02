"""The numbers of each training step, and the files metrics.csv and validation.csv with them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import Config
from ..model.hvae import Elbo
from ..storage.files import write_atomically
from .optimizer import FlatOptimizer
from .schedules import kl_weight, learning_rate
from .update import StepResult

METRICS_FILE = "metrics.csv"
SCALARS = ("nelbo", "rate", "distortion", "loss", "grad_norm", "learning_rate", "beta")
"""Attributes of `StepMetrics` that are one real number each."""
METRICS_COLUMNS = ("step", *SCALARS, "active_groups", "skipped", "seconds")
VALIDATION_FILE = "validation.csv"
VALIDATION_COLUMNS = ("step", "nelbo", "rate", "distortion", "images")

ACTIVE_NATS = 0.01
"""A latent group whose KL is above this many nats per image is active: it carries information."""


def _number(index: int, kind: type[float] = float) -> Any:
    """Make an attribute of the number at `index` of what `packed` gives."""
    return property(lambda metrics: kind(metrics._read[index]))


class StepMetrics:
    """The numbers of one step, averaged over the batch.

    They are read from the device when the first is asked for, which waits for the step; so ask before the next, seldom.
    """

    loss: float = _number(0)
    """nats/dim, with the KL's weights of this step."""
    distortion: float = _number(1)
    """bits/dim."""
    grad_norm: float = _number(2)
    """Global norm before clipping."""
    skipped: bool = _number(3, bool)
    """Whether the update was left out: the norm was not finite or reached the threshold."""
    skipped_so_far: int = _number(4, int)
    """Updates left out since the run began."""
    skipped_in_a_row: int = _number(5, int)
    """Updates left out since the last one that was made."""

    def __init__(self, step: int, numbers: Callable[[], Tensor], config: Config) -> None:
        """`numbers` gives what `packed` does."""
        self.step = step
        self._numbers = numbers
        self._config = config

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
        least = ACTIVE_NATS / self._config.model.nats_per_bit_dim
        return sum(rate > least for rate in self.group_rates)

    @property
    def learning_rate(self) -> float:
        """Learning rate of this step's update."""
        return learning_rate(self._config.optimizer, self.step)

    @property
    def beta(self) -> float:
        """The KL's weight in the loss."""
        return kl_weight(self._config.loss, self.step)


@torch.no_grad()
def packed(result: StepResult, optimizer: FlatOptimizer) -> Tensor:
    """Pack the numbers of `StepMetrics` into one tensor on the device: one transfer brings them all."""
    counters = (optimizer.skipped, optimizer.skipped_in_a_row)
    scalars = (result.loss, result.distortion, result.grad_norm, result.skipped, *counters)
    return torch.cat([torch.stack([scalar.double() for scalar in scalars]), result.rate.double()])


class MetricsLog:
    """metrics.csv of a run; rows after the step it continues from are dropped first, to be written again."""

    def __init__(self, run: Path, step: int) -> None:
        path = run / METRICS_FILE
        _rewrite(path, METRICS_COLUMNS, step)
        self._file = open(path, "a", newline="", encoding="utf-8")  # noqa: SIM115 - closed by close
        self.close = self._file.close

    def add(self, m: StepMetrics, seconds: float) -> None:
        """Write a row; it is in the file, whole, when this returns."""
        numbers = (f"{getattr(m, name):.9g}" for name in SCALARS)
        csv.writer(self._file).writerow([m.step, *numbers, m.active_groups, m.skipped_so_far, f"{seconds:.1f}"])
        self._file.flush()


def drop_validations_after(run: Path, step: int) -> None:
    """Drop the rows of validation.csv that a run which continues from `step` will write again."""
    path = run / VALIDATION_FILE
    if path.exists():
        _rewrite(path, VALIDATION_COLUMNS, step)


def add_validation(run: Path, step: int, elbo: Elbo, images: int) -> None:
    """Add a row to validation.csv, in the place of one of the same step."""
    values = [f"{value.item():.9g}" for value in (elbo.nelbo, elbo.rate, elbo.distortion)]
    _rewrite(run / VALIDATION_FILE, VALIDATION_COLUMNS, step - 1, [str(step), *values, str(images)])


def read_validation(run: Path, step: int) -> Elbo | None:
    """Read the validation of `step`, bits/dim; None if there was none."""
    for row in _rows_until(run / VALIDATION_FILE, VALIDATION_COLUMNS, step):
        if int(row[0]) == step:
            return Elbo(torch.tensor(float(row[2])), torch.tensor(float(row[3])))
    return None


def _rewrite(path: Path, columns: Sequence[str], step: int, *new: Sequence[str]) -> None:
    """Write a table's rows of steps up to `step`, then the `new` ones."""
    text = io.StringIO()
    csv.writer(text).writerows([columns, *_rows_until(path, columns, step), *new])
    write_atomically(path, text.getvalue().encode())


def _rows_until(path: Path, columns: Sequence[str], step: int) -> list[list[str]]:
    """Read whole rows of steps up to `step`."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        rows = list(csv.reader(file))[1:]
    return [row for row in rows if len(row) == len(columns) and row[0].isdigit() and int(row[0]) <= step]
