"""The training loop: steps, validation, metrics, checkpoints; a killed run goes on where its last state stands."""

from __future__ import annotations

import csv
import dataclasses
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..config import Config
from ..errors import ModelError
from ..images import ImageSource
from ..model.checkpoint import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    load_run_config,
    point_latest,
    replace_atomically,
    save_config,
    save_weights,
)
from ..model.hvae import HVAE, Elbo
from .batches import BatchStream
from .interrupt import Interruptible
from .noise import image_noise
from .optimizer import FlatOptimizer
from .schedules import learning_rate
from .state import TrainState, load_state, save_state
from .update import StepResult, update

METRICS_FILE = "metrics.csv"
VALIDATION_FILE = "validation.csv"
VALIDATION_COLUMNS = ("step", "nelbo", "rate", "distortion", "images")


@dataclass(frozen=True)
class TrainOptions:
    """What a run may be told besides its configuration."""

    seed: int = 0
    """Seed of initialisation, batches and noise."""
    save_every: int = 500
    """Steps between states."""
    log_every: int = 20
    """Steps between rows of metrics.csv."""
    validation_images: int = 800
    """Held-out images in the validation at each state, at most."""
    device: str = "cpu"
    """Where to train."""
    latest: Path | None = None
    """Pointer to the last run, such as `runs/latest`, to be moved to this one."""


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    run: Path
    step: int
    skipped: int
    validation: Elbo
    """Means over the held-out images, bits/dim, with the averaged weights."""
    seconds: float


@dataclass(frozen=True)
class StepMetrics:
    """What one step gave; rate and distortion in bits/dim, averaged over the batch."""

    step: int
    loss: float
    """nats/dim, with the KL's weights of this step."""
    rate: float
    distortion: float
    grad_norm: float
    """Global norm before clipping."""
    learning_rate: float
    skipped: bool
    """Whether the update was left out: the norm was not finite or reached the threshold."""

    @property
    def nelbo(self) -> float:
        """bits/dim."""
        return self.rate + self.distortion


OnStep = Callable[[StepMetrics], None]


def start_run(run: Path, config: Config, *, resume: bool) -> Config:
    """Create the folder of a run, or check the one to go on with; returns the configuration to train.

    A resumed run keeps its own configuration except for its length. Raises `ModelError` where `run` exists and is not
    to be resumed, or is to be and does not exist.
    """
    exists = (run / CONFIG_FILE).is_file()
    if resume and not exists:
        raise ModelError(f"there is no run at {run} to resume; leave out --resume to start it")
    if not resume and run.exists() and any(run.iterdir()):
        raise ModelError(f"{run} exists; pass --resume to go on with it, or give another --out")
    if resume:
        saved = load_run_config(run)
        config = dataclasses.replace(saved, train=dataclasses.replace(saved.train, steps=config.train.steps))
    save_config(run, config)
    return config


def train(
    run: Path,
    config: Config,
    training: ImageSource,
    validation: ImageSource,
    options: TrainOptions | None = None,
    on_step: OnStep | None = None,
    on_read: Callable[[int, int], None] | None = None,
) -> TrainResult:
    """Train `config` on `training`, in the folder `run` that `start_run` made, from its newest state if it has one.

    `on_read` is called with the images read into memory before the first step, `on_step` after every step. An
    interrupt (Ctrl-C) leaves the state of the last whole step behind. The weights for use, `model.safetensors`, are the
    exponential moving average.
    """
    options = options or TrainOptions()
    started = time.monotonic()
    state = _start_state(run, config, options)
    if state.step == 0:
        save_state(run, state)  # keeps the seed: a run killed before its next state goes on as it began
    flip = config.train.horizontal_flip
    batches = BatchStream(training, config.train.batch_size, state.seed, horizontal_flip=flip, on_read=on_read)
    if options.latest is not None:
        point_latest(
            options.latest, run
        )  # not before the images were read: a run that cannot start must not hide the last one
    try:
        with Interruptible() as interrupt, _MetricsLog(run / METRICS_FILE, options.log_every, state.step) as log:
            while state.step < config.train.steps:
                metrics = _step(state, config, batches)
                log.add(metrics, int(state.optimizer.skipped))
                if on_step is not None:
                    on_step(metrics)
                if interrupt.requested:
                    _save_weights_and_state(run, state)
                    raise KeyboardInterrupt
                if state.step % options.save_every == 0 and state.step < config.train.steps:
                    _save(run, config, state, validation, options)
    finally:
        batches.close()
    elbo = _save(run, config, state, validation, options)
    return TrainResult(run, state.step, int(state.optimizer.skipped), elbo, time.monotonic() - started)


def _start_state(run: Path, config: Config, options: TrainOptions) -> TrainState:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = HVAE(config.model)
    model = model.to(options.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = FlatOptimizer(model, config.optimizer, config.train.ema_decay)
    state = TrainState(model, optimizer, seed=options.seed)
    load_state(run, state)
    return state


def _step(state: TrainState, config: Config, batches: BatchStream) -> StepMetrics:
    """One step; its noise depends on seed and step alone."""
    step = state.step + 1
    images = batches.batch(step).to(state.model.device)
    noise = image_noise(config.model, [(state.seed, step, i) for i in range(len(images))], state.model.device)
    result = update(state.model, state.optimizer, config, images, noise, step)
    state.step = step
    return _metrics(step, result, learning_rate(config.optimizer, step))


def _metrics(step: int, result: StepResult, rate: float) -> StepMetrics:
    return StepMetrics(
        step,
        result.loss.item(),
        result.rate.sum().item(),
        result.distortion.item(),
        result.grad_norm.item(),
        rate,
        bool(result.skipped),
    )


def _save(run: Path, config: Config, state: TrainState, validation: ImageSource, options: TrainOptions) -> Elbo:
    """Write state and averaged weights; returns and logs their validation."""
    _save_weights_and_state(run, state)
    with torch.device("meta"):
        model = HVAE(config.model)
    model.load_state_dict(state.optimizer.named(state.optimizer.ema), assign=True)
    elbo = validate(model.eval(), validation, config.train.batch_size, state.seed, options.validation_images)
    rows = _rows_until(run / VALIDATION_FILE, state.step - 1)
    values = [f"{v.item():.6f}" for v in (elbo.nelbo, elbo.rate, elbo.distortion)]
    images = str(min(len(validation), options.validation_images))
    _write_rows(run / VALIDATION_FILE, VALIDATION_COLUMNS, [*rows, [str(state.step), *values, images]])
    return elbo


def _save_weights_and_state(run: Path, state: TrainState) -> None:
    save_state(run, state)
    save_weights(run / WEIGHTS_FILE, state.optimizer.named(state.optimizer.ema))


def _write_rows(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([columns, *rows])
    replace_atomically(path, text.getvalue().encode())


def validate(model: HVAE, source: ImageSource, batch_size: int, seed: int, images: int) -> Elbo:
    """Mean rate and distortion (bits/dim) over at most `images` held-out ones, evenly spaced, with the same noise."""
    generator = torch.Generator(model.device).manual_seed(seed)
    batches = source.evenly(images).batches(batch_size)
    parts = [model.elbo(torch.from_numpy(batch), generator=generator) for batch in batches]
    return Elbo(torch.cat([p.rate for p in parts]).mean(), torch.cat([p.distortion for p in parts]).mean())


class _MetricsLog:
    """metrics.csv: a row every few steps; rows after the resumed step are dropped first."""

    COLUMNS = ("step", "nelbo", "rate", "distortion", "loss", "grad_norm", "learning_rate", "skipped", "seconds")

    def __init__(self, path: Path, every: int, step: int) -> None:
        _write_rows(path, self.COLUMNS, _rows_until(path, step))
        self._file = open(path, "a", newline="", encoding="utf-8")  # noqa: SIM115 - closed by __exit__
        self._writer = csv.writer(self._file)
        self._every = every
        self._started = time.monotonic()

    def __enter__(self) -> _MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, m: StepMetrics, skipped: int) -> None:
        if m.step % self._every:
            return
        numbers = (m.nelbo, m.rate, m.distortion, m.loss, m.grad_norm, m.learning_rate)
        seconds = f"{time.monotonic() - self._started:.1f}"
        self._writer.writerow([m.step, *(f"{number:.6g}" for number in numbers), skipped, seconds])
        self._file.flush()


def _rows_until(path: Path, step: int) -> list[list[str]]:
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    return [row for row in rows if row and row[0].isdigit() and int(row[0]) <= step]
