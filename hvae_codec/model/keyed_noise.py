"""Noise as a function of seed, step and image: the same whatever the batch it is in, on one process and on many.

For training and for averages over many images. Drawn on the device, for all groups at once, since a step should wait
for nothing; `image_noise`, for results that are reported image by image, is the same on every device.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from ..config import ModelConfig
from .hvae import Noise
from .top_down import LatentGroup


def keyed_noise(
    config: ModelConfig, keys: Sequence[tuple[int, ...]], device: torch.device | str, groups: int | None = None
) -> Noise:
    """Standard normal numbers, float32, for every group of a batch with one key an image: (seed, step, position).

    `groups` asks for the first ones alone.

    An image's numbers depend on its key (and on the kind of device) alone, not on the batch it is in, so that work can
    be divided among processes in any way. All are drawn at once: training keeps them for the backward pass anyway.
    """
    drawn = torch.empty(len(keys), noise_dims(config, groups), device=device)
    fill_keyed(drawn, keys)
    return noise_of(config, drawn)


def noise_dims(config: ModelConfig, groups: int | None = None) -> int:
    """Numbers that the first `groups` of a model, or all, need an image."""
    return sum(group.dims for group in config.groups[:groups])


def noise_of(config: ModelConfig, drawn: Tensor) -> Noise:
    """The numbers `drawn`, [B, dims], as noise: each group has its part of a row, in the groups' order."""
    starts = [0, *itertools.accumulate(group.dims for group in config.groups)]

    def noise(group: LatentGroup) -> Tensor:
        shape = config.groups[group.index]
        part = drawn[:, starts[group.index] : starts[group.index + 1]]
        # Channels last, as the activations are.
        return part.unflatten(1, (shape.resolution, shape.resolution, shape.variates)).permute(0, 3, 1, 2)

    return noise


def fill_keyed(rows: Tensor, keys: Sequence[tuple[int, ...]]) -> None:
    """Fill each of `rows`, where they are, with the numbers of its key."""

    def fill(first: int) -> None:
        generator = torch.Generator(rows.device)
        for row, key in zip(rows[first::workers], keys[first::workers], strict=True):
            row.normal_(generator=generator.manual_seed(mix(*key)))

    # On a CPU torch draws with one thread, however many there are.
    workers = torch.get_num_threads() if rows.device.type == "cpu" else 1
    if workers == 1:
        fill(0)
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(fill, range(workers)))


def mix(*key: int) -> int:
    """A seed for every key: 63 bits on a GPU, of which torch's generator on a CPU uses 32."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1
