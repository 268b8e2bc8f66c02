"""Noise that belongs to an image, not to the batch it happens to be in."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from .top_down import LatentGroup


class ImageNoise:
    """Draws standard normal numbers for the latent groups of a batch, each image's from a generator of its own.

    The generator of an image depends on (seed, image number) alone: results depend neither on the batch size nor on
    the image at which a run was resumed. Numbers are drawn on the CPU, so a GPU gets the same ones, by numpy: torch's
    CPU generator keeps 32 bits of a seed, so two of 100,000 images would be expected to have the same numbers.

    Groups asked for again, as for a second posterior sample, get the numbers that follow.
    """

    def __init__(self, seed: int, images: Iterable[int]) -> None:
        self.generators = [np.random.default_rng((seed, image)) for image in images]

    def __call__(self, group: LatentGroup) -> Tensor:
        """Draw noise for `group`, [B, variates, H, W], on its device and in its memory format."""
        like = group.prior.mean
        drawn = np.stack([g.standard_normal(like.shape[1:], dtype=np.float32) for g in self.generators])
        last = torch.channels_last if like.stride(1) == 1 else torch.contiguous_format
        return torch.from_numpy(drawn).to(like.device, like.dtype, memory_format=last)

    def torch_generators(self) -> list[torch.Generator]:
        """Make a CPU generator for each image, seeded from its numbers that follow."""
        return [torch.Generator().manual_seed(int(g.integers(2**63))) for g in self.generators]
