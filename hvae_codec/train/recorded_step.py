"""A training step recorded once as a CUDA graph: later steps are one launch, where the host would need thousands.

A recording holds addresses, not values. Whatever changes with the step is therefore written into buffers before a
replay: images, noise, and the step's numbers (learning rate, KL weight). Weights, gradients, moments and counters are
the optimiser's flat tensors, which stay where they are. Balanced groups are another computation, so a step is recorded
again once balancing ends.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from ..config import Config
from ..distributed import DistributedContext
from ..model.choices import Noise
from ..model.keyed_noise import fill_keyed, keyed_noise, noise_dims, noise_of
from .accumulation import cut, update_in_parts
from .optimizer import FlatOptimizer
from .schedules import StepNumbers
from .update import Network, StepResult

GraphMode = Literal["auto", "on", "off"]
"""Whether steps are recorded; auto: on one GPU."""

Keys = Sequence[tuple[int, ...]]
Step = Callable[[Tensor, Keys, int], StepResult]
"""Trains on images [B, C, H, W], with the noise of one key per image, at a step counted from 1."""


def make_step(
    wanted: GraphMode,
    network: Network,
    optimizer: FlatOptimizer,
    config: Config,
    processes: DistributedContext,
    on_warning: Callable[[str], None],
) -> Step:
    """Make a training step, recorded if it is `wanted` and possible; `on_warning` is called if wanted, not possible."""
    step = EagerStep(network, optimizer, config, processes)
    recorded = is_recorded(wanted, processes)
    if wanted == "on" and not recorded:
        on_warning("steps are recorded as a CUDA graph by one process on one GPU alone; they run without")
    return RecordedStep(step, on_warning) if recorded else step


def is_recorded(wanted: GraphMode, processes: DistributedContext) -> bool:
    """Whether steps are recorded: if that is wanted, and there is one process on one GPU."""
    return wanted != "off" and processes.world_size == 1 and processes.device.startswith("cuda")


class EagerStep:
    """A step whose operations are launched one by one, on one process or on many; each part's noise is drawn anew."""

    def __init__(
        self, network: Network, optimizer: FlatOptimizer, config: Config, processes: DistributedContext
    ) -> None:
        self.network, self.optimizer, self.config = network, optimizer, config
        self.device = optimizer.weights.device
        mean = processes.all_reduce_mean
        self.update = functools.partial(update_in_parts, network, optimizer, config, mean_over_processes=mean)

    def __call__(self, images: Tensor, keys: Keys, step: int) -> StepResult:
        """Train on `images` at `step`."""
        rows = cut(len(images), self.config.train.accumulate)
        return self.update([functools.partial(self._part, images[part], keys[part]) for part in rows], step)

    def _part(self, images: Tensor, keys: Keys) -> tuple[Tensor, Noise]:
        return images, keyed_noise(self.config.model, keys, self.device)


class RecordedStep:
    """`eager`'s step on buffers of its own; on a GPU its first step is recorded, and the later ones replay that.

    On a CPU each step runs as it would be recorded. Batches of another size than the first one's take `eager`'s way, as
    do all batches if recording failed, after a call of `on_warning`. Later steps do not change an earlier result.
    """

    def __init__(self, eager: EagerStep, on_warning: Callable[[str], None]) -> None:
        self._eager, self._on_warning = eager, on_warning
        self._buffers: _Buffers | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._recorded: StepResult | None = None
        self._balanced = False
        self._failed = False

    @property
    def replays(self) -> bool:
        """Whether the next step is a replay."""
        return self._graph is not None

    def __call__(self, images: Tensor, keys: Keys, step: int) -> StepResult:
        """Train on `images` at `step`."""
        eager = self._eager
        if self._buffers is None:
            self._buffers = _Buffers(images.shape, eager.config, eager.device)
        if self._failed or images.shape != self._buffers.images.shape:
            return eager(images, keys, step)
        numbers = StepNumbers.at(eager.config, step)
        self._buffers.fill(images, keys, numbers)
        if eager.device.type != "cuda":
            return self._run()
        with torch.cuda.device(eager.device):
            if self._graph is None or self._balanced != numbers.balanced:
                return self._record()
            assert self._recorded is not None
            self._graph.replay()
            return _copied(self._recorded)

    def _run(self) -> StepResult:
        """Take a step on what the buffers hold."""
        assert self._buffers is not None
        rows = cut(len(self._buffers.images), self._eager.config.train.accumulate)
        parts = [functools.partial(self._buffers.part, part) for part in rows]
        return self._eager.update(parts, self._buffers.numbers)

    def _record(self) -> StepResult:
        """Take a step, then record the next one; recording computes nothing."""
        self._graph = self._recorded = None  # an earlier recording's memory is free for this one
        self._eager.optimizer.prime()  # moments that the recording made would be in its own memory
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        # Libraries set themselves up in the first step, which a recording could not hold.
        with torch.cuda.stream(stream):
            first = _copied(self._run())
            self._try_recording(stream)
        torch.cuda.current_stream().wait_stream(stream)
        return first

    def _try_recording(self, stream: torch.cuda.Stream) -> None:
        gc.collect()  # what is thrown away while recording may be memory of another recording
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=stream):
                recorded = self._run()
        except RuntimeError as error:  # out of memory is one, too
            self._failed = True
            # What went wrong makes the end of the recording fail, too, which says less.
            reason = str(error.__context__ or error).partition("\n")[0]
            self._on_warning(f"the training step cannot be recorded as a CUDA graph ({reason}); steps run without")
        else:
            assert self._buffers is not None
            self._graph, self._recorded, self._balanced = graph, recorded, self._buffers.numbers.balanced


class _Buffers:
    """What a recorded step reads: written before each."""

    def __init__(self, shape: torch.Size, config: Config, device: torch.device) -> None:
        self._model = config.model
        self.images = torch.empty(shape, dtype=torch.uint8, device=device)
        self.noise = torch.empty(shape[0], noise_dims(config.model), device=device)
        # In double precision on a CPU, whose optimiser takes the rate as a number of the host.
        rate = torch.zeros((), dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device)
        self.numbers = StepNumbers(rate, torch.zeros((), device=device), balanced=False)

    def fill(self, images: Tensor, keys: Keys, numbers: StepNumbers) -> None:
        self.images.copy_(images)
        fill_keyed(self.noise, keys)
        for buffer, number in zip(self.numbers[:2], numbers[:2], strict=True):
            # The number goes along with the launch: a copy would need memory that the host must not reuse too early.
            buffer.fill_(number)  # type: ignore[union-attr]
        self.numbers = self.numbers._replace(balanced=numbers.balanced)

    def part(self, rows: slice) -> tuple[Tensor, Noise]:
        return self.images[rows], noise_of(self._model, self.noise[rows])


def _copied(result: StepResult) -> StepResult:
    """Copy the numbers; a replay writes the next step's in their place."""
    return StepResult(*(tensor.clone() for tensor in result))
