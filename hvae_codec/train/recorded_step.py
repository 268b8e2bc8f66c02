"""A training step recorded once as a CUDA graph: later steps are one launch, where the host would need thousands.

A recording holds addresses, not values. Whatever changes with the step is therefore written into buffers before a
replay: images, noise, and the step's numbers (learning rate, KL weight). Weights, gradients, moments and counters are
the optimiser's flat tensors, which stay where they are. Balanced groups are another computation, so a step is recorded
again once balancing ends.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..config import Config
from ..distributed import DistributedContext
from ..model.choices import Noise
from ..model.keyed_noise import fill_keyed, keyed_noise, noise_dims, noise_of
from ..model.recorded import GraphMode, Recorded
from .accumulation import cut, update_in_parts
from .optimizer import FlatOptimizer
from .schedules import StepNumbers
from .update import Network, StepResult

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
    """`eager`'s step on buffers of its own; on a GPU its second step is recorded, and that and the later ones replayed.

    On a CPU each step runs as it would be recorded. Batches of another size than the first one's take `eager`'s way.
    `on_warning` is called if recording fails. Later steps do not change an earlier result.
    """

    def __init__(self, eager: EagerStep, on_warning: Callable[[str], None]) -> None:
        self._eager, self._on_warning = eager, on_warning
        self._buffers: _Buffers | None = None
        self._recorded: Recorded[StepResult] | None = None
        self._balanced = False

    @property
    def replays(self) -> bool:
        """Whether the next step is a replay, if groups are balanced in it as in the last one."""
        return self._recorded is not None and self._recorded.replays

    def __call__(self, images: Tensor, keys: Keys, step: int) -> StepResult:
        """Train on `images` at `step`."""
        eager = self._eager
        if self._buffers is None:
            self._buffers = _Buffers(images.shape, eager.config, eager.device)
            if eager.device.type == "cuda":
                eager.optimizer.prime()  # moments that the recording made would be in its own memory
        if images.shape != self._buffers.images.shape:
            return eager(images, keys, step)
        numbers = StepNumbers.at(eager.config, step)
        self._buffers.fill(images, keys, numbers)
        return _copied(self._computation(balanced=numbers.balanced)())

    def _computation(self, *, balanced: bool) -> Recorded[StepResult]:
        """Return what computes a step; an earlier recording's memory is free for a new one."""
        if self._recorded is None or self._balanced != balanced:
            eager = self._eager
            self._recorded = Recorded(self._run, eager.device, self._warn, eager.optimizer.state())
            self._balanced = balanced
        return self._recorded

    def _warn(self, reason: str) -> None:
        self._on_warning(f"the training step cannot be recorded as a CUDA graph ({reason}); steps run without")

    def _run(self) -> StepResult:
        """Take a step on what the buffers hold."""
        assert self._buffers is not None
        rows = cut(len(self._buffers.images), self._eager.config.train.accumulate)
        parts = [functools.partial(self._buffers.part, part) for part in rows]
        return self._eager.update(parts, self._buffers.numbers)


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
