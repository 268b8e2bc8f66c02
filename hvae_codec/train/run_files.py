"""Everything that the steps of a run write: rows and events, averaged weights, state, in this order.

The state commits the rest: after a kill between two of them, the run continues from an earlier state and writes the
same again. What is ahead of the state is dropped first.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..data.sources import ImageSource
from ..errors import ModelError
from ..model.checkpoint import WEIGHTS_FILE, load_weights, point_latest, save_weights
from ..model.hvae import HVAE, Elbo
from ..storage.files import write_atomically
from .metrics import SCALARS, StepMetrics
from .state import TrainState, save_state

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS_FILE = "metrics.csv"
METRICS_COLUMNS = ("step", *SCALARS, "active_groups", "skipped", "seconds")
VALIDATION_FILE = "validation.csv"
VALIDATION_COLUMNS = ("step", "nelbo", "rate", "distortion", "images")
EVENTS_FOLDER = "tensorboard"
EVENT_IMAGES = 8  # images per row in TensorBoard, and in all


class RunFiles:
    """The files of `run` at the step of `state`, which are written by the first process alone."""

    def __init__(self, run: Path, state: TrainState) -> None:
        self._run, self._state = run, state
        self._validation = run / VALIDATION_FILE
        self._opened = ExitStack()
        self.close = self._opened.close
        self._tensorboard: TensorBoardLogger | None = None

    def make_consistent(self) -> None:
        """Make `model.safetensors` and validation.csv those of the state; after a kill they may be ahead of it."""
        if self._validation.exists():
            _rewrite(self._validation, VALIDATION_COLUMNS, self._state.step)
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
        path = self._run / METRICS_FILE
        _rewrite(path, METRICS_COLUMNS, self._state.step)
        self._metrics = self._opened.enter_context(open(path, "a", newline="", encoding="utf-8"))  # noqa: SIM115
        if tensorboard:
            self._tensorboard = TensorBoardLogger(self._run, self._state.step)
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
        """Write averaged weights, then the state; the newest `keep_states` stay."""
        save_weights(self._run / WEIGHTS_FILE, self._average())
        save_state(self._run, self._state, keep_states)

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


class TensorBoardLogger:
    """Logs the events of a run that continues from `step`; TensorBoard drops what an earlier try wrote after it.

    Events are scalars, KL per latent group, reconstructions beside originals, and prior samples.
    """

    def __init__(self, run: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here, because its import takes as long as torch's

        self._writer: SummaryWriter = SummaryWriter(str(run / EVENTS_FOLDER), purge_step=step + 1)
        self.close = self._writer.close

    def add_step(self, m: StepMetrics) -> None:
        """Log the scalars of a step, and the KL of each group."""
        for name in (*SCALARS, "active_groups"):
            self._writer.add_scalar(f"train/{name}", getattr(m, name), m.step)
        self._writer.add_scalar("train/skipped", m.skipped_so_far, m.step)
        for group, rate in enumerate(m.group_rates):
            self._writer.add_scalar(f"kl/group_{group:02d}", rate, m.step)

    def add_validation(self, step: int, elbo: Elbo, model: HVAE, held_out: ImageSource, seed: int) -> None:
        """Log held-out bits/dim, a row of originals above their reconstructions, and samples from the prior."""
        for name in ("nelbo", "rate", "distortion"):
            self._writer.add_scalar(f"validation/{name}", getattr(elbo, name).item(), step)
        chosen = held_out.evenly(EVENT_IMAGES)
        originals = torch.from_numpy(chosen.read(range(len(chosen))))
        pairs = torch.cat([originals, model.reconstruct(originals).cpu()])
        self._writer.add_images("originals_and_reconstructions", pairs, step)
        generator = torch.Generator(model.device).manual_seed(seed)
        self._writer.add_images("samples", model.sample(EVENT_IMAGES, generator=generator).cpu(), step)
        self._writer.flush()
