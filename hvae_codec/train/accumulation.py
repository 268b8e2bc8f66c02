"""A step whose images are computed in parts, one after the other: memory for the activations of one part is enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..config import Config, TrainConfig
from ..errors import UsageError
from ..model.choices import Noise
from ..model.hvae import Terms
from .optimizer import FlatOptimizer
from .schedules import StepNumbers
from .update import Network, StepResult, apply_gradients, mean_kl, training_loss, update

Part = Callable[[], tuple[Tensor, Noise]]
"""Gives the images, uint8 [B, C, H, W], and the noise of a part of a batch; it may be asked twice."""


def update_in_parts(
    network: Network,
    optimizer: FlatOptimizer,
    config: Config,
    parts: Sequence[Part],
    step: int | StepNumbers,
    mean_over_processes: Callable[[Tensor], Tensor] = lambda own: own,
) -> StepResult:
    """Train on a batch in equal `parts` as `update` does on the whole of it; numbers differ by rounding alone.

    The loss is a mean over images, so the parts' gradients add up to its gradient. But the weights of balanced groups
    depend on the KL of all images. So while groups are balanced, the KL of the other parts is computed before the first
    part's gradient: of n parts, n - 1 run forward once more, without keeping activations.
    """
    if len(parts) == 1:
        return update(network, optimizer, config, *parts[0](), step, mean_over_processes)
    numbers = step if isinstance(step, StepNumbers) else StepNumbers.at(config, step)
    optimizer.zero_grad()
    others = _kl_of(network, parts[1:], config) if numbers.balanced else []
    of_batch: list[Tensor] = []

    def mean_over_batch(first: Tensor) -> Tensor:
        if not of_batch:
            of_batch.append(mean_over_processes(torch.stack([first, *others]).mean(dim=0)))
        return of_batch[0]

    def add_gradients(part: Part) -> tuple[Tensor, Tensor, Tensor]:
        terms = network(*part())
        loss = training_loss(terms, config.model, config.loss, numbers, mean_over_batch) / len(parts)
        optimizer.backward(loss)
        # Nothing else of this part may last: its graph has activations.
        return loss.detach(), terms.nll.detach(), terms.kl.detach()

    losses, nll, kl = zip(*map(add_gradients, parts), strict=True)
    optimizer.average(mean_over_processes)
    terms = Terms(torch.cat(nll), torch.cat(kl, dim=1))
    return apply_gradients(optimizer, config, numbers, torch.stack(losses).sum(), terms)


@torch.no_grad()
def _kl_of(network: Network, parts: Sequence[Part], config: Config) -> list[Tensor]:
    """Compute each part's mean KL of each group, [groups], nats/dim."""
    return [mean_kl(network(*part()), config.model) for part in parts]


def cut(images: int, parts: int) -> list[slice]:
    """Cut a batch of `images` into equal parts.

    >>> cut(6, 3)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 6, None)]
    """
    size = images // parts
    return [slice(first, first + size) for first in range(0, images, size)]


def numbers_of_parts(images: int) -> list[int]:
    """List the numbers of equal parts that a batch of `images` can be cut into.

    >>> numbers_of_parts(12)
    [1, 2, 3, 4, 6, 12]
    """
    return [parts for parts in range(1, images + 1) if images % parts == 0]


def check_batch_size(train: TrainConfig, processes: int) -> None:
    """Raise `UsageError` if a step's images cannot be shared out among `processes`, or cut into parts there."""
    size, parts = train.batch_size, train.accumulate
    if size % processes:
        raise UsageError(
            f"train.batch_size is {size}, the images a step of all {processes} processes together, and no multiple of "
            f"{processes}; give --set train.batch_size={size + processes - size % processes}, or another number of "
            "processes"
        )
    own = size // processes
    if own % parts:
        fitting = next((number for number in numbers_of_parts(own) if number >= parts), own)
        each = f" of each of {processes} processes" if processes > 1 else ""
        raise UsageError(
            f"train.accumulate is {parts}, and the {own} images a step{each} cannot be cut into {parts} equal parts; "
            f"give --set train.accumulate={fitting}"
        )
