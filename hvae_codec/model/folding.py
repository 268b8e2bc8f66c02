"""Folds what pruned variates add to the state into the residual term: a top-down block then computes them no more.

The prior cell's last convolution has no activation after it. With its input h, the residual r = C_r h + c_r, the
features f = C_f h + c_f, the prior mean of pruned variates m = P_m f + p_m and the projection W_m of their z = m,

    state + r + W z + w  =  state + (C_r + W_m P_m C_f) h + (c_r + W_m (P_m c_f + p_m)) + W_k z_k + w

so that one convolution gives the residual and what pruned variates add, and z_k is of the kept ones alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .kernels.silu_conv import Kernel, halves, joined_kernel, kernel_of
from .top_down import TopDownBlock


@torch.no_grad()
def folded_residual(block: TopDownBlock, kept: Tensor) -> Kernel:
    """Return weight [width, middle, k, k] and bias [width] of the residual term, with pruned variates at their mean.

    `kept` is bool [variates], True = keep.
    """
    (weight, bias), features = halves(kernel_of(block.prior_cell.convs[-1]))
    of_mean = kernel_of(block.prior_conv)
    pruned = (~kept).nonzero().flatten()  # their means are the first half of the prior's outputs
    mean_weight, mean_bias = joined_kernel(features, (of_mean[0][pruned], of_mean[1][pruned]))
    projection = kernel_of(block.z_conv)[0][:, pruned].flatten(1)
    added = torch.tensordot(projection, mean_weight, dims=([1], [0]))
    return weight + added, torch.addmv(bias, projection, mean_bias)
