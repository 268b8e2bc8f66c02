"""A training step recorded once as a CUDA graph: later steps are one launch, where the host would need thousands.

A recording holds addresses, not values. Whatever changes with the step is therefore written into buffers before a
replay: images, noise, and the step's numbers (learning rate, KL weight, balance). Weights, gradients, moments and
counters are the optimiser's flat tensors, which stay where they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..config import Config
from ..distributed import DistributedContext
from ..model.keyed_noise import fill_keyed, keyed_noise, noise_dims, noise_of
from ..model.recorded import GraphMode, Recorded
from .optimizer import FlatOptimizer
from .schedules import StepNumbers
from .update import Network, StepResult, update

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
    possible = processes.world_size == 1 and processes.device.startswith("cuda")
    if wanted == "on" and not possible:
        on_warning("steps are recorded as a CUDA graph by one process on one GPU alone; they run without")
    return RecordedStep(step, on_warning) if possible and wanted != "off" else step


class EagerStep:
    """A step whose operations are launched one by one, on one process or on many."""

    def __init__(
        self, network: Network, optimizer: FlatOptimizer, config: Config, processes: DistributedContext
    ) -> None:
        self.network, self.optimizer, self.config = network, optimizer, config
        self.device = optimizer.weights.device
        mean = processes.all_reduce_mean
        self.update = functools.partial(update, network, optimizer, config, mean_over_processes=mean)

    def __call__(self, images: Tensor, keys: Keys, step: int) -> StepResult:
        """Train on `images` at `step`."""
        return self.update(images, keyed_noise(self.config.model, keys, self.device), step)


class RecordedStep:
    """`eager`'s step on buffers of its own; on a GPU its second step is recorded, and that and the later ones replayed.

    On a CPU each step runs as it would be recorded. Batches of another size than the first one's take `eager`'s way.
    `on_warning` is called if recording fails. Later steps do not change an earlier result.
    """

    def __init__(self, eager: EagerStep, on_warning: Callable[[str], None]) -> None:
        self._eager = eager
        self._buffers: _Buffers | None = None

        def tell(reason: str) -> None:
            on_warning(f"the training step cannot be recorded as a CUDA graph ({reason}); steps run without")

        self._recorded = Recorded(self._run, eager.device, tell)

    @property
    def replays(self) -> bool:
        """Whether the next step is a replay."""
        return self._recorded.replays

    def __call__(self, images: Tensor, keys: Keys, step: int) -> StepResult:
        """Train on `images` at `step`."""
        eager = self._eager
        if self._buffers is None:
            self._buffers = _Buffers(images.shape, eager.config, eager.device)
            if eager.device.type == "cuda":
                eager.optimizer.prime()  # moments that the recording made would be in its own memory
        if images.shape != self._buffers.images.shape:
            return eager(images, keys, step)
        self._buffers.fill(images, keys, StepNumbers.at(eager.config, step))
        return _copied(self._recorded())

    def _run(self) -> StepResult:
        """Take a step on what the buffers hold."""
        assert self._buffers is not None
        noise = noise_of(self._eager.config.model, self._buffers.noise)
        return self._eager.update(self._buffers.images, noise, self._buffers.numbers)


class _Buffers:
    """What a recorded step reads: written before each."""

    def __init__(self, shape: torch.Size, config: Config, device: torch.device) -> None:
        self.images = torch.empty(shape, dtype=torch.uint8, device=device)
        self.noise = torch.empty(shape[0], noise_dims(config.model), device=device)
        # In double precision on a CPU, whose optimiser takes the rate as a number of the host.
        rate = torch.zeros((), dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device)
        balanced = torch.zeros((), dtype=torch.bool, device=device)
        self.numbers = StepNumbers(rate, torch.zeros((), device=device), balanced)

    def fill(self, images: Tensor, keys: Keys, numbers: StepNumbers) -> None:
        self.images.copy_(images)
        fill_keyed(self.noise, keys)
        for buffer, number in zip(self.numbers, numbers, strict=True):
            # The number goes along with the launch: a copy would need memory that the host must not reuse too early.
            buffer.fill_(number)  # type: ignore[union-attr]


def _copied(result: StepResult) -> StepResult:
    """Copy the numbers; a replay writes the next step's in their place."""
    return StepResult(*(tensor.clone() for tensor in result))
