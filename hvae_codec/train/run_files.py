"""Everything that the steps of a run write: rows of metrics and validation, averaged weights, state, in this order.

The state commits the rest: after a kill between two of them, the run continues from an earlier state and writes the
same again. What is ahead of the state is dropped first.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path

import torch
from torch import Tensor

from ..data.sources import ImageSource
from ..errors import ModelError
from ..model.checkpoint import WEIGHTS_FILE, load_weights, point_latest, save_weights
from ..model.hvae import HVAE, Elbo
from .metrics import MetricsLog, StepMetrics, add_validation, drop_validations_after
from .state import TrainState, save_state
from .tensorboard import TensorBoardLogger


class RunFiles:
    """The files of `run`, which are written by the first process alone."""

    def __init__(self, run: Path, state: TrainState) -> None:
        self._run, self._state = run, state
        self._open = ExitStack()
        self.close = self._open.close
        self._tensorboard: TensorBoardLogger | None = None

    def make_consistent(self) -> None:
        """Make `model.safetensors` and validation.csv those of the state; after a kill they may be ahead of it."""
        drop_validations_after(self._run, self._state.step)
        path, average = self._run / WEIGHTS_FILE, self._average()
        if self._state.step == 0 and not path.exists():
            return
        with suppress(ModelError):  # missing or damaged
            written = load_weights(path)
            if written.keys() == average.keys() and all(torch.equal(written[k], average[k].cpu()) for k in written):
                return
        save_weights(path, average)

    def open(self, latest: Path | None, *, tensorboard: bool) -> None:
        """Open metrics.csv and events, and point `latest` to the run."""
        if latest is not None:
            point_latest(latest, self._run)
        self._metrics = MetricsLog(self._run, self._state.step)
        self._open.callback(self._metrics.close)
        if tensorboard:
            self._tensorboard = TensorBoardLogger(self._run, self._state.step)
            self._open.callback(self._tensorboard.close)

    def add_step(self, m: StepMetrics) -> None:
        """Write down the numbers of a step."""
        self._metrics.add(m, self._state.seconds)
        if self._tensorboard is not None:
            self._tensorboard.add_step(m)

    def add_validation(self, elbo: Elbo, images: int, model: HVAE, held_out: ImageSource) -> None:
        """Write down the validation of `model` on some `images` of `held_out`."""
        add_validation(self._run, self._state.step, elbo, min(images, len(held_out)))
        if self._tensorboard is not None:
            self._tensorboard.add_validation(self._state.step, elbo, model, held_out, self._state.seed)

    def save(self, keep_states: int) -> None:
        """Write averaged weights, then the state; the newest `keep_states` stay."""
        save_weights(self._run / WEIGHTS_FILE, self._average())
        save_state(self._run, self._state, keep_states)

    def _average(self) -> dict[str, Tensor]:
        return self._state.optimizer.named(self._state.optimizer.ema)
