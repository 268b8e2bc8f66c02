"""The training loop: steps, validation, metrics, checkpoints; a killed run goes on where its last state stands.

What belongs to a step is written in this order: rows of metrics and validation, averaged weights, state. The state
commits the rest: after a kill between two of them, the run goes on from an earlier state and writes the same again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..config import Config
from ..data.sources import ImageSource
from ..distributed import DistributedContext, StopAgreement
from ..errors import HvaeCodecError, ModelError, TrainingError, UsageError
from ..model.checkpoint import WEIGHTS_FILE, load_weights, point_latest, save_weights
from ..model.hvae import HVAE, Elbo
from ..model.precision import same_algorithms
from ..progress import Progress
from .batches import CACHE_BYTES, BatchStream, default_workers
from .interrupt import Interruptible
from .metrics import (
    MetricsLog,
    StepMetrics,
    add_validation,
    drop_validations_after,
    packed,
    read_validation,
)
from .network import make_network
from .optimizer import FlatOptimizer
from .recorded_step import GraphMode, Step, make_step
from .run_folder import Origin, save_origin, start_run
from .run_lock import RunLock
from .state import STATES, TrainState, load_state, save_state
from .tensorboard import TensorBoardLogger
from .update import StepResult
from .validation import validate

__all__ = ["OnStep", "StepMetrics", "TrainOptions", "TrainResult", "start_run", "train"]

_NEVER = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class TrainOptions:
    """What a run may be told besides its configuration."""

    seed: int = 0
    """Seed of initialisation, batches and noise; a run that goes on keeps its own."""
    save_every: int = 500
    """Steps between states."""
    keep_states: int = STATES
    """States kept, the newest ones."""
    eval_every: int = 500
    """Steps between validations; there is one at the end, too."""
    log_every: int = 20
    """Steps between rows of metrics.csv, and between looks at whether training is still sound."""
    validation_images: int = 800
    """Held-out images in a validation, at most."""
    max_skips: int = 100
    """Updates left out in a row at which training is given up."""
    workers: int | None = None
    """Threads that read images, a process; None: this process's share of the cores, 8 at most."""
    tensorboard: bool = False
    """Whether to write TensorBoard events."""
    other_data: bool = False
    """Whether a run may go on with other images than it was begun with."""
    device: str = "cpu"
    """Where to train, for one process alone."""
    graph: GraphMode = "auto"
    """Whether a step is recorded as a CUDA graph, which makes it several times faster; auto: on one GPU."""
    deterministic: bool = False
    """Whether a GPU computes the same numbers each time, so that a run goes on to the last bit; may take longer."""
    latest: Path | None = None
    """Pointer to the last run, such as `runs/latest`, to be moved to this one."""

    def __post_init__(self) -> None:
        for name in ("save_every", "keep_states", "eval_every", "log_every", "validation_images", "max_skips"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    run: Path
    step: int
    skipped: int
    validation: Elbo
    """Means over the held-out images, bits/dim, with the averaged weights."""
    seconds: float
    """Spent on all steps, also before the run was gone on with."""
    steps_taken: int
    """Steps of this call; 0 where the run was finished before."""


OnStep = Callable[[StepMetrics], None]


def train(
    run: Path,
    config: Config,
    training: ImageSource,
    validation: ImageSource,
    options: TrainOptions | None = None,
    on_step: OnStep | None = None,
    on_read: Progress | None = None,
    on_warning: Callable[[str], None] | None = None,
    processes: DistributedContext | None = None,
) -> TrainResult:
    """Train `config` on `training`, in the folder `run` that `start_run` made, from its newest state if it has one.

    `on_read` is called with the images read into memory before the first step, `on_step` after every step, `on_warning`
    with a sentence about what is wrong but no reason to stop (default: the log). Ctrl-C or SIGTERM saves after the step
    at hand and raises `KeyboardInterrupt`. The weights for use, `model.safetensors`, are the moving average.
    `processes` are those of `init_distributed`; each must call this with the same arguments, and only the first writes.

    Raises `DataError` naming an image that cannot be read, or where the run was begun on other images; `TrainingError`
    where training diverged; `ModelError` where no state can be read, or another process trains this run.
    """
    options = options or TrainOptions()
    processes = processes or DistributedContext(device=options.device)
    on_warning = on_warning or logging.getLogger(__name__).warning
    _check_batch_size(config, processes)
    _check_same_images(training, validation, processes)
    lock = RunLock(run)
    processes.run_on_main(lock.acquire)
    try:
        origin = Origin.of(options.seed, training, validation)
        origin = processes.run_on_main(lambda: save_origin(run, origin, other_data=options.other_data))
        state = _start_state(run, config, origin.seed, processes, on_warning)
        begun = state.step
        sources = (training, validation)
        loop = _Loop(run, config, options, state, processes, *sources, on_step or (lambda _: None), on_warning)
        processes.run_on_main(loop.make_consistent)
        if begun < config.train.steps:
            with same_algorithms(options.deterministic):
                loop.train(on_read)
        elbo = loop.last_validation()
    finally:
        lock.release()
    return TrainResult(run, state.step, int(state.optimizer.skipped), elbo, state.seconds, state.step - begun)


def _check_batch_size(config: Config, processes: DistributedContext) -> None:
    size, count = config.train.batch_size, processes.world_size
    if size % count:
        fitting = size + count - size % count
        raise UsageError(
            f"train.batch_size is {size}, the images a step of all {count} processes together, and no multiple of "
            f"{count}; give --set train.batch_size={fitting}, or another number of processes"
        )


def _check_same_images(training: ImageSource, validation: ImageSource, processes: DistributedContext) -> None:
    if processes.world_size == 1:
        return
    own = (training.fingerprint, validation.fingerprint)
    if own != processes.run_on_main(lambda: own):
        raise UsageError("this process sees other images than the first one; give all machines the same data")


def _start_state(
    run: Path, config: Config, seed: int, processes: DistributedContext, on_warning: Callable[[str], None]
) -> TrainState:
    """The newest state of `run`, read by the first process and handed to all; a new one where there is none."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = HVAE(config.model)
    model = model.to(processes.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = FlatOptimizer(model, config.optimizer, config.train.ema_decay)
    state = TrainState(model, optimizer, seed=seed)

    def load() -> tuple[int, int, float]:
        if load_state(run, state, on_warning) is None:
            save_state(run, state)  # a run that is killed before its first save goes on from here
        return state.step, state.seed, state.seconds

    state.step, state.seed, state.seconds = processes.run_on_main(load)
    tensors = processes.broadcast(optimizer.tensors())
    if not processes.is_main:
        optimizer.load(tensors)
    return state


class _Loop:
    """A run at work: what `train` does once its state is there."""

    def __init__(
        self,
        run: Path,
        config: Config,
        options: TrainOptions,
        state: TrainState,
        processes: DistributedContext,
        training: ImageSource,
        validation: ImageSource,
        on_step: OnStep,
        on_warning: Callable[[str], None],
    ) -> None:
        self.run, self.config, self.options = run, config, options
        self.state, self.processes = state, processes
        self.training, self.validation = training, validation
        self.on_step, self.on_warning = on_step, on_warning
        self.first_bad = torch.full((), _NEVER, device=state.model.device)
        self.saved_step = state.step
        self.elbo: Elbo | None = None
        self.log: MetricsLog | None = None
        self.tensorboard: TensorBoardLogger | None = None

    def make_consistent(self) -> None:
        """Make `model.safetensors` and validation.csv those of the state; after a kill they may be ahead of it."""
        drop_validations_after(self.run, self.state.step)
        path = self.run / WEIGHTS_FILE
        average = self.state.optimizer.named(self.state.optimizer.ema)
        if (self.state.step or path.exists()) and not _holds(path, average):
            save_weights(path, average)

    def train(self, on_read: Progress | None) -> None:
        """All steps that are left."""
        self.step = self.make_step()
        self.batches = self.make_batches(on_read)
        try:
            if self.processes.is_main:
                self.open_files()
            self.take_steps()
        finally:
            self.batches.close()
            if self.log is not None:
                self.log.close()
            if self.tensorboard is not None:
                self.tensorboard.close()

    def make_step(self) -> Step:
        """What takes a step: the network, prepared as the configuration says, and the optimiser."""
        network = make_network(self.state.model, self.config.train, self.processes)
        optimizer, wanted = self.state.optimizer, self.options.graph
        return make_step(wanted, network, optimizer, self.config, self.processes, self.on_warning)

    def make_batches(self, on_read: Progress | None) -> BatchStream:
        """This process's part of the batches."""
        processes = self.processes
        return BatchStream(
            self.training,
            self.config.train.batch_size,
            self.state.seed,
            horizontal_flip=self.config.train.horizontal_flip,
            part=(processes.rank, processes.world_size),
            workers=self.options.workers or default_workers(processes.local_world_size),
            cache_bytes=CACHE_BYTES // processes.local_world_size,
            on_read=on_read if processes.is_main else None,
        )

    def open_files(self) -> None:
        """Open what steps are written to, once images were read: a run that cannot start must hide no other."""
        if self.options.latest is not None:
            point_latest(self.options.latest, self.run)
        self.log = MetricsLog(self.run, self.state.step)
        if self.options.tensorboard:
            self.tensorboard = TensorBoardLogger(self.run, self.state.step)

    def take_steps(self) -> None:
        """Step until the last one, or until a process is told to stop."""
        self.since = time.monotonic() - self.state.seconds
        agreement = StopAgreement(self.processes)
        with Interruptible() as interrupt:
            while self.state.step < self.config.train.steps:
                metrics = self.take_step()
                self.on_step(metrics)
                stopping = agreement.reached(interrupt.requested)
                self.finish_step(stopping=stopping)
                if stopping and self.state.step < self.config.train.steps:
                    agreement.close()
                    raise KeyboardInterrupt
            agreement.close()

    def take_step(self) -> StepMetrics:
        """One step: its images and its noise depend on seed and step alone."""
        step = self.state.step + 1
        images = self.read_batch(step)
        first = self.processes.rank * len(images)
        keys = [(self.state.seed, step, first + i) for i in range(len(images))]
        result = self.step(images, keys, step)
        self.state.step = step
        self.remember_bad(result, first)
        self.packed = partial(packed, result, self.state.optimizer)
        return StepMetrics(step, self.packed, self.config)

    def read_batch(self, step: int) -> Tensor:
        """The images of `step`, on their way to the device; where one cannot be read, the steps so far are saved."""
        try:
            images = self.batches.batch(step)
        except HvaeCodecError:
            if self.processes.world_size == 1 and self.state.step != self.saved_step:
                with suppress(HvaeCodecError, OSError):  # what is wrong with the image is what there is to say
                    self.save()
            raise
        if self.state.model.device.type == "cuda":
            return images.pin_memory().to(self.state.model.device, non_blocking=True)
        return images

    def remember_bad(self, result: StepResult, first: int) -> None:
        """Keep, on the device, the first image since the last look whose terms are not finite."""
        place = self.state.step * self.config.train.batch_size + first + result.bad_image
        self.first_bad = torch.minimum(self.first_bad, torch.where(result.bad_image >= 0, place, _NEVER))

    def finish_step(self, *, stopping: bool) -> None:
        """Log, validate and save, where one of them is due."""
        step, options = self.state.step, self.options
        last = step == self.config.train.steps
        if step % options.log_every == 0:
            self.log_step()
        elif last or stopping:
            self.warn_of_bad_image()
        if last or step % options.eval_every == 0:
            self.validate()
        if last or stopping or step % options.save_every == 0:
            self.save()

    def log_step(self) -> None:
        """Write down the step, averaged over the processes; warn or give up where training is not sound."""
        averaged = self.processes.all_reduce_mean(self.packed())
        metrics = StepMetrics(self.state.step, lambda: averaged, self.config)
        self.state.seconds = time.monotonic() - self.since
        if self.log is not None:
            self.log.add(metrics, self.state.seconds)
        if self.tensorboard is not None:
            self.tensorboard.add_step(metrics)
        self.warn_of_bad_image()
        if metrics.skipped_in_a_row >= self.options.max_skips:
            raise TrainingError(_skip_advice(metrics, self.config))

    def warn_of_bad_image(self) -> None:
        """Name the first image since the last look whose terms are not finite."""
        place = int(self.processes.all_reduce_min(self.first_bad))
        self.first_bad.fill_(_NEVER)
        if place != _NEVER and self.processes.is_main:
            step, position = divmod(place, self.config.train.batch_size)
            name = self.batches.name(step, position)
            self.on_warning(f"step {step}: the loss of the image {name} is not a finite number")

    def validate(self) -> None:
        """Validate the averaged weights, and write that down."""
        model = self.averaged_model()
        options, seed = self.options, self.state.seed
        size = max(1, self.config.train.batch_size // self.processes.world_size)
        self.elbo = validate(model, self.validation, size, seed, options.validation_images, self.processes)
        if self.processes.is_main:
            images = min(len(self.validation), options.validation_images)
            add_validation(self.run, self.state.step, self.elbo, images)
        if self.tensorboard is not None:
            self.tensorboard.add_validation(self.state.step, self.elbo, model, self.validation, seed)

    def averaged_model(self) -> HVAE:
        """The model for use, which shares its weights with the optimiser's average."""
        with torch.device("meta"):
            model = HVAE(self.config.model)
        model.load_state_dict(self.state.optimizer.named(self.state.optimizer.ema), assign=True)
        return model.eval()

    def save(self) -> None:
        """Write averaged weights, then the state, both only where they are finite numbers."""
        if not self.state.is_finite():
            raise TrainingError(
                f"after step {self.state.step} the weights are not finite numbers; the last good state stays: go on "
                "from it with --resume and a lower --set optimizer.learning_rate=…"
            )
        self.state.seconds = time.monotonic() - self.since
        self.processes.run_on_main(self.write)
        self.saved_step = self.state.step

    def write(self) -> None:
        """What `save` does on the first process."""
        save_weights(self.run / WEIGHTS_FILE, self.state.optimizer.named(self.state.optimizer.ema))
        save_state(self.run, self.state, self.options.keep_states)

    def last_validation(self) -> Elbo:
        """Of the last step; found in validation.csv where the run was finished before."""
        found = self.elbo or self.processes.run_on_main(lambda: read_validation(self.run, self.state.step))
        if found is None:  # finished under fewer steps, or its table is gone
            self.validate()
            found = self.elbo
        assert found is not None
        return found


def _holds(path: Path, weights: dict[str, Tensor]) -> bool:
    """Whether the file has these weights, to the last bit."""
    try:
        written = load_weights(path)
    except ModelError:  # missing or damaged
        return False
    same = written.keys() == weights.keys()
    return same and all(torch.equal(written[name], weights[name].cpu()) for name in written)


def _skip_advice(m: StepMetrics, config: Config) -> str:
    """Why training is given up, and what may help."""
    threshold = config.optimizer.skip_threshold
    finite = threshold is not None and threshold <= m.grad_norm < float("inf")
    why = f"reaches optimizer.skip_threshold = {threshold:g}" if finite else "is not a finite number"
    help_ = f"a higher --set optimizer.skip_threshold={2 * m.grad_norm:.3g} or " if finite else ""
    return (
        f"the last {m.skipped_in_a_row} updates up to step {m.step} were left out, as the gradient's norm "
        f"({m.grad_norm:.3g}) {why}; go on from the last state with --resume and {help_}a lower "
        f"--set optimizer.learning_rate={config.optimizer.learning_rate / 2:g}"
    )
