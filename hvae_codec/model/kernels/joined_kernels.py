"""Kernels of convolutions in a row, joined for many latent groups at once: a GPU takes longer to start than to compute.

`activated_conv.joined_kernel` is the same for one pair, as a CPU does it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .activated_conv import Kernel


def joined_kernels(firsts: Sequence[Kernel], seconds: Sequence[Kernel], beside: int = 0) -> list[Kernel]:
    """Return the kernel of each pair of convolutions: weights [beside + outputs, inputs, k, k], channels last.

    Weights are [beside + middle, inputs, k, k] and [outputs, middle, 1, 1]; all pairs have these shapes. The first
    `beside` outputs of the first convolution do not go through the second, and stay in front.
    """
    weight, bias = _stacked(firsts)
    matrix, last_bias = _stacked(seconds)
    sizes = [beside, weight.shape[1] - beside] if beside else [weight.shape[1]]
    *weights_beside, inner = weight.split(sizes, dim=1)
    *biases_beside, inner_bias = bias.split(sizes, dim=1)
    joined = torch.bmm(matrix, inner)
    joined_bias = torch.baddbmm(last_bias.unsqueeze(2), matrix, inner_bias.unsqueeze(2)).squeeze(2)
    if beside:
        joined = torch.cat([*weights_beside, joined], dim=1)
        joined_bias = torch.cat([*biases_beside, joined_bias], dim=1)
    _, inputs, *size = firsts[0][0].shape
    joined = joined.unflatten(2, (*size, inputs)).permute(0, 1, 4, 2, 3)
    return list(zip(joined.unbind(), joined_bias.unbind(), strict=True))


def _stacked(kernels: Sequence[Kernel]) -> tuple[Tensor, Tensor]:
    """Stack weights as matrices, [n, outputs, k · k · inputs], and biases, [n, outputs]."""
    # In this order the weights' numbers lie in memory, if channels are last.
    rows = [weight.permute(0, 2, 3, 1).flatten(1) for weight, _ in kernels]
    return torch.stack(rows), torch.stack([bias for _, bias in kernels])
