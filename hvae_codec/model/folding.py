"""Folds what pruned variates add to the state into the residual term: a top-down block then computes them no more.

The prior cell's last convolution has no activation after it. With its input h, the residual r = C_r h + c_r, the
features f = C_f h + c_f, the prior mean of pruned variates m = P_m f + p_m (m = f_m itself if `heads` are direct) and
the projection W_m of their z = m,

    state + r + W z + w  =  state + (C_r + W_m P_m C_f) h + (c_r + W_m (P_m c_f + p_m)) + W_k z_k + w

so that one convolution gives the residual and what pruned variates add, and z_k is of the kept ones alone.
Sums are in float64 and in one order, so every machine gets the same weights: their hash is in stores.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .kernels.activated_conv import Kernel, kernel_of
from .top_down import TopDownBlock


@torch.no_grad()
def folded_residual(block: TopDownBlock, kept: Tensor) -> Kernel:
    """Return weight [width, middle, k, k] and bias [width] of the residual term, with pruned variates at their mean.

    `kept` is bool [variates], True = keep.
    """
    residual, features = block.prior_kernels()
    pruned = (~kept).nonzero().flatten().cpu()  # their means are the first half of the prior's outputs
    means = _matrix(features)
    if block.prior_conv is None:
        means = means[pruned]
    else:
        of_mean = _matrix(kernel_of(block.prior_conv))[pruned]
        means = _product(of_mean[:, :-1], means)
        means[:, -1] += of_mean[:, -1]
    projection = _matrix(kernel_of(block.z_conv))[:, pruned]
    folded = (_matrix(residual) + _product(projection, means)).to(residual[0])
    return folded[:, :-1].reshape(residual[0].shape), folded[:, -1].contiguous()


def _matrix(kernel: Kernel) -> Tensor:
    """Return weight and bias of a convolution as one float64 matrix [outputs, inputs · k · k + 1]; the bias is last."""
    weight, bias = kernel
    return torch.cat([weight.flatten(1), bias[:, None]], dim=1).double().cpu()


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Multiply matrices; library routines add up in an order of their own on each machine."""
    product = a.new_zeros(len(a), b.shape[1])
    for column, row in zip(a.T, b, strict=True):
        product += column[:, None] * row
    return product
