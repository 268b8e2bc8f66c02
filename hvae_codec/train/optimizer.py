"""The optimiser over all weights as one flat tensor: an update is a handful of operations, whatever the model's size.

    flat weights   [ conv 1 | pad | conv 2 | pad | ... ]      each parameter is a view of its part
    flat gradients [   .    |     |   .    |     | ... ]      gathered here after each backward pass

Whether an update is skipped is decided on the weights' device: no step waits for a number to reach the host.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..config import OptimizerConfig
from ..errors import ModelError
from .skipping_adamax import SkippingAdamax

_ALIGNMENT = 16  # parameters start at multiples of this many floats: vector units load whole cache lines


class FlatOptimizer:
    """Weights, gradients, moments and moving average of `model`, each one flat float32 tensor.

    The parameters of `model` become views, with the memory format that they have: a model that is moved to another
    device or memory format afterwards is no longer the optimiser's. `ema` is the exponential moving average of the
    weights, ema = d · ema + (1 - d) · weights after each update.
    """

    def __init__(
        self, model: nn.Module, config: OptimizerConfig, ema_decay: float, copied_as: torch.dtype | None = None
    ) -> None:
        """`copied_as`: the type of a copy of the convolutions' weights that the model computes with; None: no copy."""
        self.config = config
        self.ema_decay = ema_decay
        self._parameters = dict(model.named_parameters())
        padded = (-(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT for parameter in self._parameters.values())
        *self._offsets, length = itertools.accumulate(padded, initial=0)
        device = next(model.parameters()).device
        self.weights = nn.Parameter(torch.zeros(length, device=device))
        self.gradients = torch.zeros(length, device=device)
        weights = self.named(self.weights.detach())
        for name, parameter in self._parameters.items():
            weights[name].copy_(parameter.detach())
            parameter.data = weights[name]
        self._copy = None if copied_as is None else self._copied(model, copied_as)
        self.weights.grad = self.gradients
        self._parts = self._gradient_parts()
        self._are_zero = True
        self.ema = self.weights.detach().clone()
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        """Updates left out so far."""
        self.skipped_in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        """Updates left out since the last one that was made."""
        self._inner = _make(self.weights, config)

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Cut a flat tensor into parts with the parameters' names, shapes and memory formats."""
        return {
            name: flat.as_strided(parameter.shape, parameter.stride(), offset)
            for (name, parameter), offset in zip(self._parameters.items(), self._offsets, strict=True)
        }

    def _copied(self, model: nn.Module, dtype: torch.dtype) -> Tensor:
        """Make a flat copy of the weights, and give the convolutions of `model` their parts of it."""
        copy = self.weights.detach().to(dtype)
        layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
        copied = {id(parameter) for layer in layers for parameter in (layer.weight, layer.bias)}
        for (_, parameter), part in zip(self._parameters.items(), self.named(copy).values(), strict=True):
            if id(parameter) in copied:
                parameter.data = part
        return copy

    def _gradient_parts(self) -> list[Tensor]:
        """Cut the flat gradients into the parameters' parts; on GPUs as they lie in memory, [numbers] each."""
        if self.gradients.device.type == "cpu":
            return list(self.named(self.gradients).values())
        sizes = (parameter.numel() for parameter in self._parameters.values())
        return [self.gradients[first : first + size] for first, size in zip(self._offsets, sizes, strict=True)]

    def zero_grad(self) -> None:
        """Set all gradients to 0."""
        self.gradients.zero_()
        self._are_zero = True

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss` to the flat ones; those of weights that it does not depend on stay.

        They are gathered by a few kernels, where `loss.backward()` would take one for every parameter.
        """
        parameters = self._parameters.values()
        found = torch.autograd.grad(loss, list(parameters), allow_unused=True)
        used: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}  # by type: a GPU copies those of one type at once
        for part, gradient, parameter in zip(self._parts, found, parameters, strict=True):
            if gradient is not None:
                row = gradient if gradient.device.type == "cpu" else _row(gradient, parameter)
                used.setdefault(gradient.dtype, []).append((part, row))
        gather = torch._foreach_copy_ if self._are_zero else torch._foreach_add_
        for pairs in used.values():
            gather([part for part, _ in pairs], [row for _, row in pairs])
        self._are_zero = False

    def average(self, mean_over_processes: Callable[[Tensor], Tensor]) -> None:
        """Average the gradients over all processes: one message, whatever the number of parameters."""
        averaged = mean_over_processes(self.gradients)
        if averaged is not self.gradients:
            self.gradients.copy_(averaged)

    @torch.no_grad()
    def step(self, rate: float | Tensor) -> tuple[Tensor, Tensor]:
        """Update weights and average at learning rate `rate`; gives the gradient norm and whether it was skipped.

        A tensor `rate` is a scalar on the weights' device, where both results are, too. Skipped, and counted, if the
        global norm (before clipping) is not finite or reaches the threshold.
        """
        norm = torch.linalg.vector_norm(self.gradients)
        good = norm < (self.config.skip_threshold or float("inf"))
        if self.config.clip_norm is not None:
            # As torch.nn.utils.clip_grad_norm_ has it; a norm of NaN is skipped anyway.
            self.gradients.mul_((self.config.clip_norm / (norm + 1e-6)).clamp(max=1.0))
        if good.device.type != "cpu":
            self._advance_if(good, rate)
        elif good:
            self._advance(float(rate))
        self._renew_copy()
        bad = ~good
        self.skipped += bad
        self.skipped_in_a_row.add_(1).mul_(bad)
        return norm, bad

    def _renew_copy(self) -> None:
        if self._copy is not None:
            self._copy.copy_(self.weights.detach())

    def _advance(self, rate: float | Tensor) -> None:
        self._inner.param_groups[0]["lr"] = rate
        self._inner.step()
        # Two roundings, as the published models have it.
        self.ema.mul_(self.ema_decay).add_(self.weights, alpha=1.0 - self.ema_decay)

    def _advance_if(self, good: Tensor, rate: float | Tensor) -> None:
        """Make the update, or change nothing if it is not `good`; a GPU need not tell the host which."""
        self._inner.param_groups[0]["lr"] = rate
        self._inner.found_inf = (~good).float()  # type: ignore[attr-defined]
        self._inner.step()
        self.ema.lerp_(self.weights.detach(), good * (1.0 - self.ema_decay))

    @torch.no_grad()
    def prime(self) -> None:
        """Make the moments, which the library makes at the first step, so that they can be kept over it."""
        if self._moments():
            return
        others = [self.weights.detach(), self.gradients, self.ema]
        before = [tensor.clone() for tensor in others]
        self.gradients.zero_()
        if self.weights.device.type == "cpu":
            self._advance(0.0)
        else:
            self._advance_if(self.weights.new_ones((), dtype=torch.bool), 0.0)
        for tensor, old in zip(others, before, strict=True):
            tensor.copy_(old)
        for tensor in self._moments().values():
            tensor.zero_()

    def _moments(self) -> dict[str, Tensor]:
        """Get the library's tensors; none before the first step, and asking makes none, as indexing its state would."""
        return self._inner.state.get(self.weights, {})

    def state(self) -> list[Tensor]:
        """List the tensors that a step changes and later ones depend on, as they lie in memory."""
        copy = [] if self._copy is None else [self._copy]
        return [self.weights, *copy, self.ema, self.skipped, self.skipped_in_a_row, *self._moments().values()]

    def tensors(self) -> dict[str, Tensor]:
        """Name all that resuming needs: `weights.NAME`, `ema.NAME`, `optimizer.MOMENT.NAME`, and counters."""
        moments = {f"optimizer.{name}": tensor for name, tensor in self._moments().items()}
        found = {"skipped": self.skipped, "skipped_in_a_row": self.skipped_in_a_row}
        for prefix, tensor in {"weights": self.weights.detach(), "ema": self.ema, **moments}.items():
            if tensor.shape == self.weights.shape:
                found |= {f"{prefix}.{name}": part for name, part in self.named(tensor).items()}
            else:  # the library counts its steps
                found[prefix] = tensor
        return found

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` gave; `ModelError` if one is missing or does not fit."""
        if any(name.startswith("optimizer.") for name in tensors):
            self.prime()
        own = self.tensors()
        for name in own.keys() | tensors.keys():
            if name not in own or name not in tensors or own[name].shape != tensors[name].shape:
                raise ModelError(f"the training state does not fit the configuration (tensor {name})")
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
        self._renew_copy()


def _row(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Put the numbers of `gradient` in a row, in the order in which those of `parameter` lie in memory."""
    strides = zip(gradient.shape, gradient.stride(), parameter.stride(), strict=True)
    if any(size > 1 and own != other for size, own, other in strides):
        gradient = torch.empty_like(parameter, dtype=gradient.dtype).copy_(gradient)
    return gradient.as_strided((gradient.numel(),), (1,))


def _make(weights: nn.Parameter, config: OptimizerConfig) -> torch.optim.Optimizer:
    on_cpu = weights.device.type == "cpu"
    common: dict[str, Any] = {"lr": config.learning_rate, "betas": (config.beta1, config.beta2), "eps": config.epsilon}
    if config.name == "adamax":
        return torch.optim.Adamax([weights], foreach=True, **common) if on_cpu else SkippingAdamax([weights], **common)
    common |= {"fused": True, "capturable": not on_cpu}  # capturable: they count their steps on the device
    if config.name == "adamw":
        return torch.optim.AdamW([weights], weight_decay=config.weight_decay, **common)
    return torch.optim.Adam([weights], **common)
