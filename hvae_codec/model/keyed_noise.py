"""Noise as a function of seed, step and image: the same whatever the batch it is in, on one process and on many.

For training and for averages over many images. Drawn on the device, for all groups at once, so that a step waits for
nothing; `image_noise`, for results that are reported per image, is the same on every device.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from ..config import ModelConfig
from .choices import Noise
from .top_down import LatentGroup


def keyed_noise(
    config: ModelConfig, keys: Sequence[tuple[int, ...]], device: torch.device | str, groups: int | None = None
) -> Noise:
    """Draw standard normal numbers, float32, for each group of a batch with one key per image: (seed, step, position).

    `groups` draws for the first ones alone. Numbers depend on the key and the kind of device alone, so that work can be
    divided among processes in any way. All are drawn at once: training saves them for the backward pass anyway.
    """
    return noise_of(config, keyed_rows(config, keys, device, groups))


def keyed_rows(
    config: ModelConfig, keys: Sequence[tuple[int, ...]], device: torch.device | str, groups: int | None = None
) -> Tensor:
    """Draw the same as one row per image, [B, dims], for `noise_of`."""
    drawn = torch.empty(len(keys), noise_dims(config, groups), device=device)
    fill_keyed(drawn, keys)
    return drawn


def noise_dims(config: ModelConfig, groups: int | None = None) -> int:
    """Count the numbers that the first `groups` of a model, or all, need per image."""
    return sum(group.dims for group in config.groups[:groups])


def noise_of(config: ModelConfig, drawn: Tensor) -> Noise:
    """Give each group its part of every row of `drawn`, [B, dims], in the groups' order."""
    starts = [0, *itertools.accumulate(group.dims for group in config.groups)]

    def noise(group: LatentGroup) -> Tensor:
        shape = config.groups[group.index]
        part = drawn[:, starts[group.index] : starts[group.index + 1]]
        # In the activations' memory format, channels last.
        return part.unflatten(1, (shape.resolution, shape.resolution, shape.variates)).permute(0, 3, 1, 2)

    return noise


def fill_keyed(rows: Tensor, keys: Sequence[tuple[int, ...]]) -> None:
    """Fill each of `rows`, in place and on its device, with the numbers of its key."""

    def fill(first: int) -> None:
        generator = torch.Generator(rows.device)
        for row, key in zip(rows[first::workers], keys[first::workers], strict=True):
            row.normal_(generator=generator.manual_seed(_seed(key)))

    # On a CPU torch draws with one thread, however many there are.
    workers = torch.get_num_threads() if rows.device.type == "cpu" else 1
    if workers == 1:
        fill(0)  # not in a thread, which would have a stream of its own on a GPU
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(fill, range(workers)))


def _seed(key: tuple[int, ...]) -> int:
    """Mix a key to a seed: 63 bits on a GPU, of which torch's generator on a CPU uses 32."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1
