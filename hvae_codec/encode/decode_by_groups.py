"""Images decoded with the latents of more and more groups: what each latent group adds.

    ends [0, 2, 4]
    groups   0    1    2    3
             o────o────o────o──output     0: the prior's mean in all groups, the same image for all
             x────x────o────o──output     2: x is what the store has kept of the group
             x────x────x────x──output     4: as the store decodes

The state after the groups that are decoded is kept, so that each group is decoded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model.precision import full_float32
from ..model.top_down import LatentGroup
from ..store.reader import Stored
from .coder import DecodeChooser, LatentCoder, to_tensors


def decode_by_groups(coder: LatentCoder, stored: Stored, ends: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
    """Yield the images of `stored`, uint8 [B, C, H, W], for each of `ends`, which rise.

    They have the kept latents of the groups before `end`, counted in top-down order, and the prior's mean elsewhere.
    """
    choose = DecodeChooser(coder, to_tensors(stored, coder.model.device))
    state, start = None, 0
    for end in ends:
        state = _run(coder, choose, range(start, end), state)
        yield _finished(coder, choose.images, range(end, len(coder.mask.keep)), state).cpu().numpy()
        start = end


@torch.no_grad()
@full_float32()
def _run(coder: LatentCoder, choose: DecodeChooser, groups: range, state: Tensor | None) -> Tensor:
    """Compute the state after `groups`, from that before them; None before group 0."""
    return coder.model.top_down.run_groups(None, choose, choose.images, groups, state)


@torch.no_grad()
@full_float32()
def _finished(coder: LatentCoder, images: int, groups: range, state: Tensor) -> Tensor:
    """Run the last `groups` at the prior's mean: uint8 [B, C, H, W]."""
    model = coder.model
    output = model.top_down.output_conv(model.top_down.run_groups(None, _prior_mean, images, groups, state))
    return model.likelihood.to_pixels(model.likelihood.mean(output))


def _prior_mean(group: LatentGroup) -> Tensor:
    return group.prior_mean
