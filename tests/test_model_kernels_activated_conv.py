from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from hvae_codec.model.kernels.activated_conv import activated_conv

INPUTS, OUTPUTS = (3, 2), (4, 1)


def tensors(kernel: int, dtype=torch.float64):
    inputs = [torch.randn(2, c, 5, 5, dtype=dtype).requires_grad_() for c in INPUTS]
    kernels = [
        (torch.randn(c, sum(INPUTS), kernel, kernel, dtype=dtype).requires_grad_(), torch.randn(c, dtype=dtype))
        for c in OUTPUTS
    ]
    return inputs, [(weight, bias.requires_grad_()) for weight, bias in kernels]


def plain(inputs, kernels, activation="silu"):
    activated = {"silu": F.silu, "gelu": F.gelu}[activation](torch.cat(inputs, dim=1))
    return [F.conv2d(activated, w, b, padding=w.shape[-1] // 2) for w, b in kernels]


@pytest.mark.parametrize("activation", ["silu", "gelu"])
@pytest.mark.parametrize(("kernel", "joined"), [(1, 2), (3, 2), (3, 1)])
def test_values_and_gradients_are_those_of_two_operations(kernel, joined, activation):
    inputs, kernels = tensors(kernel)
    inputs = inputs if joined == 2 else [torch.cat(inputs, dim=1).detach().requires_grad_()]
    leaves = [*inputs, *(tensor for pair in kernels for tensor in pair)]
    results = []
    for function in (activated_conv, plain):
        outputs = function(inputs, kernels, activation=activation)
        loss = sum((output * (i + 1) * output).sum() for i, output in enumerate(outputs))
        results.append((*outputs, *torch.autograd.grad(loss, leaves)))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


def test_inputs_without_gradient_get_none():
    inputs, kernels = tensors(1)
    inputs = [x.detach() for x in inputs]
    activated_conv(inputs, kernels)[0].sum().backward()
    assert inputs[0].grad is None
    assert kernels[0][0].grad is not None


def test_only_what_comes_before_the_activation_is_kept():
    inputs, kernels = tensors(3)
    own = {tensor.data_ptr() for tensor in [*inputs, *(tensor for pair in kernels for tensor in pair)]}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.data_ptr()) or tensor, lambda t: t):
        activated_conv(inputs, kernels)
    assert set(kept) == own


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_autocast_decides_the_type_of_results_not_of_gradients(activation):
    inputs, kernels = tensors(3, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = activated_conv(inputs, kernels, activation=activation)
    assert {output.dtype for output in outputs} == {torch.bfloat16}
    for ours, expected in zip(outputs, plain(inputs, kernels, activation=activation), strict=True):
        torch.testing.assert_close(ours.float(), expected, rtol=0.05, atol=0.05)
    sum(output.float().sum() for output in outputs).backward()
    assert {x.grad.dtype for x in [*inputs, *(tensor for pair in kernels for tensor in pair)]} == {torch.float32}
