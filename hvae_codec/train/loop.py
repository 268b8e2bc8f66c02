"""The training loop: steps, validation, metrics, checkpoints; a killed run continues from its last state."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..config import LARGEST_SEED, Config
from ..data.sources import Images, ImageSource, as_source, is_opened
from ..distributed import DistributedContext, StopAgreement
from ..errors import DataError, HvaeCodecError, TrainingError, UsageError
from ..model.checkpoint import apply_pruning, fill_model
from ..model.hvae import HVAE, Elbo
from ..model.precision import copied_as, same_algorithms
from ..model.recorded import GraphMode
from ..progress import Progress
from .accumulation import check_batch_size
from .batches import CACHE_BYTES, BatchStream, default_workers
from .formulas import compile_formulas
from .interrupt import Interruptible
from .memory_probe import available_memory, check_memory
from .metrics import StepMetrics, packed
from .optimizer import FlatOptimizer
from .recorded_step import is_recorded, make_step
from .run_files import RunFiles
from .run_folder import RunLock, origin_of_run, start_run
from .seen_images import SeenImages
from .state import STATES, TrainState, load_state
from .update import make_network
from .validation import validate

__all__ = ["OnStep", "StepMetrics", "TrainOptions", "TrainResult", "start_run", "train"]

_NEVER = torch.iinfo(torch.int64).max


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How to run a training, besides the configuration of its model, optimiser and loss."""

    seed: int = 0  # seed of initialisation, batches and noise; a run that continues keeps its own
    save_every: int = 500  # steps between states
    keep_states: int = STATES  # the newest states, which stay on disk
    eval_every: int = 500  # steps between validations; there is one at the end, too
    log_every: int = 20  # steps between rows of metrics.csv, and between checks that training is still sound
    validation_images: int = 800  # held-out images in a validation, at most
    max_skips: int = 100  # updates left out in a row after which training is given up
    workers: int | None = None  # threads that read images; None: this process's share of the cores, 8 at most
    tensorboard: bool = False  # whether to write TensorBoard events
    other_data: bool = False  # whether a run may continue on other images than it was begun with
    check: bool = False  # whether all images that it has seen are read when it continues, whatever times of files say
    device: str = "cpu"  # where to train, for one process alone
    graph: GraphMode = "auto"  # whether a step is recorded as a CUDA graph, several times as fast; auto: on one GPU
    deterministic: bool = False  # whether a GPU computes the same numbers each time: runs continue to the last bit
    latest: Path | None = None  # pointer to the last run, such as `runs/latest`, to be moved to this one

    def __post_init__(self) -> None:
        for name in ("save_every", "keep_states", "eval_every", "log_every", "validation_images", "max_skips"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise UsageError(f"seed is {self.seed}; it must be from 0 to {LARGEST_SEED}")


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    run: Path
    step: int
    skipped: int
    validation: Elbo  # means over the held-out images, bits/dim, with the averaged weights
    seconds: float  # spent on all steps, also before the run was continued
    steps_taken: int  # steps of this call; 0 if the run was finished before
    stopped: int | None = None  # number of a signal that came too late to stop it, for callers with more to do


OnStep = Callable[[StepMetrics], None]


def train(
    run: Path,
    config: Config,
    training: Images,
    validation: Images,
    options: TrainOptions | None = None,
    on_step: OnStep | None = None,
    on_read: Progress | None = None,
    on_warning: Callable[[str], None] | None = None,
    processes: DistributedContext | None = None,
    on_start: Callable[[int], None] | None = None,
    initial: Mapping[str, Tensor] | None = None,
) -> TrainResult:
    """Train `config`, as `start_run` gave it, on `training` in the folder `run`, from its newest state if it has one.

    `on_read` is called with the images read before the first step, and those to read: into memory, or, when a run
    continues, to compare them with what it has seen. `on_start` is called with the steps taken before this call once
    the run is there, `on_step` after every step, `on_warning` with a sentence about what is wrong but no
    reason to stop (default: the log). Ctrl-C, SIGTERM or SIGHUP saves after the step at hand and raises
    `KeyboardInterrupt` with the signal's number. The weights for use, `model.safetensors`, are the moving average.
    `processes` are those of `init_distributed`; each must call this with the same arguments, and only the first writes.
    A run without a state begins with the weights `initial`, if given, instead of random ones. Raises `DataError` naming
    an image that cannot be read or was edited, or if the run was begun on other images or with other preprocessing;
    `TrainingError` if training diverged, or a step does not fit into the GPU's memory; `ModelError` if no state can be
    read, or another process trains this run.
    """
    opened = is_opened(training), is_opened(validation)
    options, training, validation = options or TrainOptions(), as_source(training), as_source(validation)
    processes = processes or DistributedContext(device=options.device)
    on_warning = on_warning or logging.getLogger(__name__).warning
    _check_processes(config, training, validation, processes)
    with _only_training_of(run, processes):
        origin_of = partial(origin_of_run, run, training, validation, opened=opened)
        origin = processes.run_on_main(partial(origin_of, seed=options.seed, other_data=options.other_data))
        state = _start_state(run, config, origin.seed, initial, processes, on_warning)
        begun = state.step
        seen = SeenImages(run, training, validation)
        compare = partial(seen.check, other_data=options.other_data, check=options.check, progress=on_read)
        if 0 < begun < config.train.steps:
            processes.run_on_main(compare)
        files = RunFiles(run, state, config, origin, on_warning, options.latest, seen)
        loop = _Loop(config, options, state, processes, validation, files, on_warning)
        if begun < config.train.steps:
            with same_algorithms(options.deterministic):
                loop.train(training, on_start or (lambda _: None), on_step or (lambda _: None), on_read)
        else:
            processes.run_on_main(files.make_consistent)
        elbo = loop.last_validation()
    skipped, taken = int(state.optimizer.skipped), state.step - begun
    return TrainResult(run, state.step, skipped, elbo, state.seconds, taken, loop.stopped)


@contextmanager
def _only_training_of(run: Path, processes: DistributedContext) -> Iterator[None]:
    """Hold the lock of the folder `run`; raises `ModelError` if another process trains it."""
    lock = RunLock(run)
    processes.run_on_main(lock.acquire)
    try:
        yield
    finally:
        if processes.is_main:
            lock.release()


def _check_processes(
    config: Config, training: ImageSource, validation: ImageSource, processes: DistributedContext
) -> None:
    check_batch_size(config.train, processes.world_size)
    own = (training.fingerprint, validation.fingerprint)
    if own != processes.run_on_main(lambda: own):
        raise UsageError(f"process {processes.rank} sees other images than process 0; give all the same data")


def _start_state(
    run: Path,
    config: Config,
    seed: int,
    initial: Mapping[str, Tensor] | None,
    processes: DistributedContext,
    on_warning: Callable[[str], None],
) -> TrainState:
    """Read the newest state of `run`, or make a new one, on the first process, and hand it to all."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = HVAE(config.model)
    if initial is not None:
        fill_model(model, dict(initial), "the pruned model")
    model = model.to(processes.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    apply_pruning(model, config.pruning)
    dtype = copied_as(config.train.precision, model.device.type)
    optimizer = FlatOptimizer(model, config.optimizer, config.train.ema_decay, dtype)
    state = TrainState(model, optimizer, seed=seed)

    def load() -> tuple[int, int, float]:
        load_state(run, state, on_warning)
        return state.step, state.seed, state.seconds

    state.step, state.seed, state.seconds = processes.run_on_main(load)
    tensors = processes.broadcast(optimizer.tensors())
    if not processes.is_main:
        optimizer.load(tensors)
    return state


@dataclass
class _Loop:
    """A run at work: what `train` does once its state is there."""

    config: Config
    options: TrainOptions
    state: TrainState
    processes: DistributedContext
    validation: ImageSource
    files: RunFiles
    on_warning: Callable[[str], None]
    elbo: Elbo | None = None  # the last validation of this call
    stopped: int | None = None  # number of the signal that asked to stop, also in the last step

    def __post_init__(self) -> None:
        self.first_bad = torch.full((), _NEVER, device=self.state.model.device)
        self.saved_step = self.state.step

    def train(
        self, training: ImageSource, on_start: Callable[[int], None], on_step: OnStep, on_read: Progress | None
    ) -> None:
        """Take all steps that are left."""
        config, options, processes, optimizer = self.config, self.options, self.processes, self.state.optimizer
        if not options.deterministic:  # a compiler times several kernels, and may choose another one the next time
            images = config.train.batch_size // (processes.world_size * config.train.accumulate)
            compile_formulas(self.state.model, optimizer, config, images, self.on_warning)
        self.check_memory()
        network = make_network(self.state.model, config.train)
        self.step = make_step(options.graph, network, optimizer, config, processes, self.on_warning)
        with processes.waiting_for_all():  # images that fit into memory are read
            self.batches = BatchStream(
                training,
                config.train.batch_size,
                self.state.seed,
                horizontal_flip=config.train.horizontal_flip,
                part=(processes.rank, processes.world_size),
                workers=options.workers or default_workers(processes.local_world_size),
                # The order of images in groups depends on it, and a run may go on with another number of processes.
                cache_bytes=CACHE_BYTES // (1 if training.groups else processes.local_world_size),
                on_read=on_read if processes.is_main else None,
            )
        with closing(self.batches), closing(self.files):
            if processes.is_main:  # once images were read: a run that cannot start leaves nothing
                self.files.open(tensorboard=options.tensorboard)
                on_start(self.state.step)
            self.take_steps(on_step)

    def check_memory(self) -> None:
        """Raise `TrainingError` if a step does not fit into the GPU's memory, before anything is written."""
        available = available_memory(self.state.model.device)
        if available is not None:
            recorded = is_recorded(self.options.graph, self.processes)
            state = self.state
            check_memory(state.model, state.optimizer, self.config, self.processes, available, recorded=recorded)

    def take_steps(self, on_step: OnStep) -> None:
        """Step until the last one, or until a process is asked to stop."""
        self.since = time.monotonic() - self.state.seconds
        agreement, stopping = StopAgreement(self.processes), False
        with Interruptible() as interrupt:
            while self.state.step < self.config.train.steps and not stopping:
                with self.saved_on_error():
                    on_step(self.take_step())
                    stopping = agreement.reached(interrupt.requested)
                    self.finish_step(stopping=stopping)
            agreement.close()
            self.stopped = interrupt.signal if self.processes.any(interrupt.requested) else None
            if self.state.step < self.config.train.steps:
                raise KeyboardInterrupt(interrupt.signal)

    def take_step(self) -> StepMetrics:
        """Take one step: its images and its noise depend on seed and step alone."""
        step = self.state.step + 1
        images = self.read_batch(step)
        first = self.processes.rank * len(images)
        keys = [(self.state.seed, step, first + i) for i in range(len(images))]
        result = self.step(images, keys, step)
        self.state.step = step
        # The first image since the last check whose terms are not finite, noted on the device.
        index = step * self.config.train.batch_size + first + result.bad_image
        self.first_bad = torch.minimum(self.first_bad, torch.where(result.bad_image >= 0, index, _NEVER))
        self.packed = partial(packed, result, self.state.optimizer)
        return StepMetrics(step, self.packed, self.config)

    @contextmanager
    def saved_on_error(self) -> Iterator[None]:
        """Save the steps so far if an image cannot be read, or a file or the terminal cannot be written."""
        try:
            yield
        except (DataError, OSError):
            if self.processes.world_size == 1 and self.state.step != self.saved_step:
                with suppress(HvaeCodecError, OSError):  # what came first is what there is to say
                    self.save()
            raise

    def read_batch(self, step: int) -> Tensor:
        """Read the images of `step` and send them to the device."""
        images = self.batches.batch(step)
        if self.state.model.device.type == "cuda":
            return images.pin_memory().to(self.state.model.device, non_blocking=True)
        return images

    def finish_step(self, *, stopping: bool) -> None:
        """Log, validate and save, if one of them is due."""
        step, options = self.state.step, self.options
        last = step == self.config.train.steps
        logging_is_due = step % options.log_every == 0
        if logging_is_due or last or stopping:
            self.warn_of_bad_image()
        if logging_is_due:
            self.log_step()
        if last or step % options.eval_every == 0:
            self.validate()
        if last or stopping or step % options.save_every == 0:
            self.save()

    def log_step(self) -> None:
        """Write down the step, averaged over the processes; give up if too many updates were skipped."""
        averaged = self.processes.all_reduce_mean(self.packed())
        metrics = StepMetrics(self.state.step, lambda: averaged, self.config)
        self.state.seconds = time.monotonic() - self.since
        if self.processes.is_main:
            self.files.add_step(metrics)
        if metrics.skipped_in_a_row >= self.options.max_skips:
            raise TrainingError(_skip_advice(metrics, self.config, self.files.run))

    def warn_of_bad_image(self) -> None:
        """Name the first image since the last check whose terms are not finite."""
        index = int(self.processes.all_reduce_min(self.first_bad))
        self.first_bad.fill_(_NEVER)
        if index != _NEVER and self.processes.is_main:
            step, position = divmod(index, self.config.train.batch_size)
            name = self.batches.name(step, position)
            self.on_warning(f"step {step}: the loss of the image {name} is not a finite number")

    def validate(self) -> Elbo:
        """Validate the averaged weights, and write that down."""
        with torch.device("meta"):
            model = HVAE(self.config.model).eval()
        # It shares its weights with the optimiser's average.
        model.load_state_dict(self.state.optimizer.named(self.state.optimizer.ema), assign=True)
        apply_pruning(model, self.config.pruning)
        train, images = self.config.train, self.options.validation_images
        size = train.batch_size // (self.processes.world_size * train.accumulate)
        self.elbo = validate(model, self.validation, size, self.state.seed, images, self.processes)
        if self.processes.is_main:
            self.files.add_validation(self.elbo, images, model, self.validation)
        return self.elbo

    def save(self) -> None:
        """Write averaged weights, then the state; raise `TrainingError` instead if they are not finite numbers."""
        if not self.state.is_finite():
            raise TrainingError(
                f"after step {self.state.step} the weights are not finite numbers; the last good state stays: go on "
                f"from it with --resume --out {shlex.quote(str(self.files.run))} and a lower "
                "--set optimizer.learning_rate=…"
            )
        self.state.seconds = time.monotonic() - self.since
        self.processes.run_on_main(partial(self.files.save, self.options.keep_states))
        self.saved_step = self.state.step

    def last_validation(self) -> Elbo:
        """Get that of the last step: of this call, from validation.csv, or made now if it is not there."""
        found = self.elbo or self.processes.run_on_main(self.files.read_validation)
        return found or self.validate()


def _skip_advice(m: StepMetrics, config: Config, run: Path) -> str:
    """Say why training is given up, and what may help."""
    threshold, rate = config.optimizer.skip_threshold, config.optimizer.learning_rate / 2
    finite = threshold is not None and threshold <= m.grad_norm < float("inf")
    why = f"reaches optimizer.skip_threshold = {threshold:g}" if finite else "is not a finite number"
    help_ = f"a higher --set optimizer.skip_threshold={2 * m.grad_norm:.3g} or " if finite else ""
    return (
        f"the last {m.skipped_in_a_row} updates up to step {m.step} were left out, as the gradient's norm "
        f"({m.grad_norm:.3g}) {why}; go on from the last state with --resume --out {shlex.quote(str(run))} and "
        f"{help_}a lower --set optimizer.learning_rate={rate:g}"
    )
