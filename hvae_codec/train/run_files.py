"""Everything that the steps of a run write: rows and events, averaged weights, configuration, state, in this order.

The state commits the rest: after a kill between two of them, the run continues from an earlier state and writes the
same again. What is ahead of the state is dropped first. A run that goes on with another configuration keeps the old one
until there is a state of the new: one that diverges at once changes nothing.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import torch
from torch import Tensor

from ..config import CONFIG_FILE, Config
from ..data.sources import ImageSource
from ..errors import ModelError
from ..model.checkpoint import WEIGHTS_FILE, check_latest, load_weights, point_latest, save_weights
from ..model.hvae import HVAE, Elbo
from ..storage.files import write_atomically
from .events import TensorBoardLogger
from .metrics import SCALARS, StepMetrics
from .run_folder import Origin, save_run
from .seen_images import SeenImages
from .state import TrainState, has_state, save_state

METRICS_FILE = "metrics.csv"
METRICS_COLUMNS = ("step", *SCALARS, "active_groups", "skipped", "seconds")
VALIDATION_FILE = "validation.csv"
VALIDATION_COLUMNS = ("step", "nelbo", "rate", "distortion", "images")


class RunFiles:
    """The files of `run` at the step of `state`, which are written by the first process alone.

    `config` and `origin` are what its steps are made from; `on_warning` is told what cannot be written and is no reason
    to stop; `latest` is a pointer to be moved to the run, such as `runs/latest`;
    `seen` are its images, which are written down.
    """

    def __init__(
        self,
        run: Path,
        state: TrainState,
        config: Config,
        origin: Origin,
        on_warning: Callable[[str], None],
        latest: Path | None = None,
        seen: SeenImages | None = None,
    ) -> None:
        self.run, self._state, self._config, self._origin, self._seen = run, state, config, origin, seen
        self._on_warning, self._latest = on_warning, latest
        self._validation = run / VALIDATION_FILE
        self._opened = ExitStack()
        self.close = self._opened.close
        self._tensorboard: TensorBoardLogger | None = None

    def make_consistent(self) -> None:
        """Make `model.safetensors` and validation.csv those of the state; after a kill they may be ahead of it."""
        if self._validation.exists():
            _rewrite(self._validation, VALIDATION_COLUMNS, self._state.step)
        path, average = self.run / WEIGHTS_FILE, self._average()
        if self._state.step == 0 and not path.exists():
            return
        with suppress(ModelError):  # missing or damaged
            written = load_weights(path)
            if written.keys() == average.keys() and all(torch.equal(written[k], average[k].cpu()) for k in written):
                return
        save_weights(path, average)

    def open(self, *, tensorboard: bool) -> None:
        """Begin the run if it is new, and open metrics.csv and events."""
        if self._latest is not None:
            check_latest(self._latest)
        if not (self.run / CONFIG_FILE).exists():
            save_run(self.run, self._config, self._origin)
        if not has_state(self.run):
            save_state(self.run, self._state)  # a run that is killed before its first save continues from here
        self.make_consistent()
        if (self.run / WEIGHTS_FILE).exists():
            self._point_latest()
        path = self.run / METRICS_FILE
        _rewrite(path, METRICS_COLUMNS, self._state.step)
        self._metrics = self._opened.enter_context(open(path, "a", newline="", encoding="utf-8"))  # noqa: SIM115
        if tensorboard:
            self._tensorboard = TensorBoardLogger(self.run, self._state.step, self._on_warning)
            self._opened.callback(self._tensorboard.close)

    def add_step(self, m: StepMetrics) -> None:
        """Write down the numbers of a step; its row is in the file, whole, when this returns."""
        numbers = (f"{getattr(m, name):.9g}" for name in SCALARS)
        row = [m.step, *numbers, m.active_groups, m.skipped_so_far, f"{self._state.seconds:.1f}"]
        csv.writer(self._metrics).writerow(row)
        self._metrics.flush()
        if self._tensorboard is not None:
            self._tensorboard.add_step(m)

    def add_validation(self, elbo: Elbo, images: int, model: HVAE, held_out: ImageSource) -> None:
        """Write down the validation of `model` on some `images` of `held_out`, in the place of one of the same step."""
        step, values = self._state.step, [f"{value.item():.9g}" for value in (elbo.nelbo, elbo.rate, elbo.distortion)]
        row = [str(step), *values, str(min(images, len(held_out)))]
        _rewrite(self._validation, VALIDATION_COLUMNS, step - 1, row)
        if self._tensorboard is not None:
            self._tensorboard.add_validation(step, elbo, model, held_out, self._state.seed)

    def read_validation(self) -> Elbo | None:
        """Read the validation of the state's step, bits/dim; None if there was none."""
        for step, _, rate, distortion, _ in _rows_until(self._validation, VALIDATION_COLUMNS, self._state.step):
            if int(step) == self._state.step:
                return Elbo(torch.tensor(float(rate)), torch.tensor(float(distortion)))
        return None

    def save(self, keep_states: int) -> None:
        """Write averaged weights, configuration, then the state; the newest `keep_states` stay."""
        save_weights(self.run / WEIGHTS_FILE, self._average())
        save_run(self.run, self._config, self._origin)
        if self._seen is not None:
            self._seen.save()
        save_state(self.run, self._state, keep_states)
        self._point_latest()

    def _point_latest(self) -> None:
        """Let the other commands find this run: it has weights."""
        if self._latest is None:
            return
        try:
            point_latest(self._latest, self.run)
        except OSError as error:
            self._on_warning(f"{self._latest} cannot point to {self.run} ({error.strerror}); name the run itself")
        self._latest = None

    def _average(self) -> dict[str, Tensor]:
        return self._state.optimizer.named(self._state.optimizer.ema)


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
