"""Noise that belongs to an image, not to the batch it happens to be in."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from .top_down import LatentGroup

FEW = 1 << 15  # numbers that are drawn before a thread would have started


class ImageNoise:
    """Draws standard normal numbers for the latent groups of a batch, each image's from a generator of its own.

    The generator of an image depends on (seed, image number) alone: results depend neither on the batch size nor on
    the image at which a run was resumed. Numbers are drawn on the CPU, so a GPU gets the same ones, by numpy: torch's
    CPU generator keeps 32 bits of a seed, so two of 100,000 images would be expected to have the same numbers.

    Groups asked for again, as for a second posterior sample, get the numbers that follow. A GPU computes one group
    while threads draw for the next ones.
    """

    def __init__(self, seed: int, images: Iterable[int]) -> None:
        self.generators = [np.random.default_rng((seed, image)) for image in images]
        self._threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self._threads, "noise")  # starts its threads when there is work

    def __call__(self, group: LatentGroup) -> Tensor:
        """Draw noise for `group`, [B, variates, H, W], on its device and in its memory format."""
        like = group.prior.mean
        drawn = torch.empty(like.shape, pin_memory=like.is_cuda)
        self._fill(drawn.numpy())
        last = torch.channels_last if like.stride(1) == 1 else torch.contiguous_format
        return drawn.to(like.device, like.dtype, non_blocking=True, memory_format=last)

    def _fill(self, rows: np.ndarray) -> None:
        """Fill each of `rows` with the next numbers of its image."""
        threads = self._threads if rows.size > FEW else 1

        def fill(first: int) -> None:
            for generator, row in zip(self.generators[first::threads], rows[first::threads], strict=True):
                generator.standard_normal(out=row, dtype=np.float32)

        if threads == 1:
            fill(0)
        else:
            list(self._pool.map(fill, range(threads)))

    def torch_generators(self) -> list[torch.Generator]:
        """Make a CPU generator for each image, seeded from its numbers that follow."""
        return [torch.Generator().manual_seed(int(g.integers(2**63))) for g in self.generators]
