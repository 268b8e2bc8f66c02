"""Convolutions of activations that save only what comes before the activation function for the backward pass.

Every convolution of a cell reads f(x), f = SiLU or GELU. Two operations would save both x and f(x); here f(x) is
computed again in the backward pass, which costs a few percent of the convolution and saves half of the memory that
cells take.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Module
from torch.nn import functional as F

from ...config import Activation

Kernel = tuple[Tensor, Tensor]
"""Weight [outputs, inputs, k, k] and bias [outputs] of a convolution that preserves H × W."""


def activated_conv(
    inputs: Sequence[Tensor],
    kernels: Sequence[Kernel],
    sizes: Sequence[int] | None = None,
    *,
    activation: Activation = "silu",
) -> list[Tensor]:
    """Apply each of `kernels` to SiLU or GELU of `inputs`, joined along channels: [B, outputs, H, W] per kernel.

    `sizes` splits the outputs of a single kernel: [B, size, H, W] each, which are views of one tensor. The
    convolutions run in the weights' type, or in autocast's, and so are the results.
    """
    function = _FUNCTIONS[activation]
    if torch.compiler.is_compiling():  # the compiler decides what is computed again
        activated = function.of(torch.cat(list(inputs), dim=1))
        outputs = [F.conv2d(activated, weight, bias, padding=weight.shape[-1] // 2) for weight, bias in kernels]
        return outputs if sizes is None else list(outputs[0].split(list(sizes), dim=1))
    dtype = autocast_dtype(inputs[0].device.type) or kernels[0][0].dtype
    parameters = [tensor for kernel in kernels for tensor in kernel]
    outputs = _ActivatedConv.apply(function, len(inputs), dtype, sizes, *inputs, *parameters)  # type: ignore[no-untyped-call]
    return list(outputs)


def autocast_dtype(device: str) -> torch.dtype | None:
    """Find the type that autocast has convolutions run in on devices of this type; None without autocast."""
    wanted = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if wanted else None


def kernel_of(layer: Module) -> Kernel:
    """Return weight and bias of a convolution."""
    return layer.weight, layer.bias  # type: ignore[return-value]


def halves(kernel: Kernel) -> list[Kernel]:
    """Return the kernels of the first and second half of the outputs."""
    weight, bias = kernel
    return list(zip(weight.chunk(2), bias.chunk(2), strict=True))


def split_kernel(kernel: Kernel, outputs: int) -> list[Kernel]:
    """Return the kernels of the first `outputs` and of the others."""
    weight, bias = kernel
    return [(weight[:outputs], bias[:outputs]), (weight[outputs:], bias[outputs:])]


def joined_kernel(first: Kernel, second: Kernel) -> Kernel:
    """Return one kernel for two convolutions in a row without an activation between them, the second of them 1 × 1.

    Weights [middle, inputs, k, k] and [outputs, middle, 1, 1] give [outputs, inputs, k, k]. The last two convolutions
    of priors and posteriors are such: no feature between the two is ever written to memory.
    """
    (weight, bias), (pointwise, last_bias) = first, second
    matrix = pointwise.flatten(1)
    return torch.tensordot(matrix, weight, dims=([1], [0])), torch.addmv(last_bias, matrix, bias)


class _Function(NamedTuple):
    """An activation function: alone, in place, and its derivative times a gradient, into a tensor."""

    of: Callable[[Tensor], Tensor]
    of_in_place: Callable[[Tensor], Tensor]
    backward_into: Callable[..., Tensor]  # (gradient, x, grad_input=...)


_aten = torch.ops.aten
_FUNCTIONS: dict[Activation, _Function] = {
    "silu": _Function(F.silu, partial(F.silu, inplace=True), _aten.silu_backward.grad_input),
    "gelu": _Function(F.gelu, _aten.gelu_, _aten.gelu_backward.grad_input),
}


class _ActivatedConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        function: _Function,
        inputs: int,
        dtype: torch.dtype,
        sizes: Sequence[int] | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*tensors)
        ctx.function, ctx.inputs, ctx.dtype, ctx.sizes = function, inputs, dtype, sizes
        activated = _activated(function, tensors[:inputs], dtype)
        outputs = tuple(
            F.conv2d(activated, weight.to(dtype), bias.to(dtype), padding=weight.shape[-1] // 2)
            for weight, bias in _pairs(tensors[inputs:])
        )
        return outputs if sizes is None else outputs[0].split(list(sizes), dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        inputs, kernels = saved[: ctx.inputs], saved[ctx.inputs :]
        if ctx.sizes is not None:
            gradients = (torch.cat(gradients, dim=1),)
        activated = _activated(ctx.function, inputs, ctx.dtype)
        wanted = any(ctx.needs_input_grad[4 : 4 + ctx.inputs])
        by_activated: Tensor | None = None
        by_kernels: list[Tensor] = []
        for gradient, (weight, bias) in zip(gradients, _pairs(kernels), strict=True):
            padding, mask = [weight.shape[-1] // 2] * 2, [wanted, True, True]
            by_x, by_weight, by_bias = torch.ops.aten.convolution_backward(
                gradient, activated, weight.to(ctx.dtype), [len(bias)], [1, 1], padding, [1, 1], False, [0, 0], 1, mask
            )
            by_kernels += [by_weight.to(weight.dtype), by_bias.to(bias.dtype)]
            by_activated = by_x if by_activated is None else by_activated.add_(by_x)
        return None, None, None, None, *_by_inputs(ctx.function, by_activated, inputs), *by_kernels


def _pairs(tensors: Sequence[Tensor]) -> list[Kernel]:
    return list(zip(tensors[::2], tensors[1::2], strict=True))


def _activated(function: _Function, inputs: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Compute the activation function of the joined inputs."""
    if len(inputs) == 1:
        return function.of(inputs[0].to(dtype))
    first = inputs[0]
    last = torch.channels_last if first.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    shape = (len(first), sum(x.shape[1] for x in inputs), *first.shape[2:])
    joined = torch.empty(shape, dtype=dtype, device=first.device, memory_format=last)
    torch.cat(list(inputs), dim=1, out=joined)
    return function.of_in_place(joined)


def _by_inputs(function: _Function, by_activated: Tensor | None, inputs: Sequence[Tensor]) -> list[Tensor | None]:
    if by_activated is None:
        return [None] * len(inputs)
    if len(inputs) == 1 and by_activated.dtype == inputs[0].dtype:
        return [function.backward_into(by_activated, inputs[0], grad_input=by_activated)]
    parts = by_activated.split([x.shape[1] for x in inputs], dim=1)
    return [
        function.backward_into(part.to(x.dtype), x, grad_input=torch.empty_like(x))
        for part, x in zip(parts, inputs, strict=True)
    ]
