"""Adamax whose updates a GPU makes or leaves out by itself, in one pass over the weights for each operation.

The library's Adam takes `found_inf` for that, but its Adamax does not: it would have to be taken back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class SkippingAdamax(torch.optim.Adamax):
    """Adamax of a single tensor that changes nothing if `found_inf` is 1, a scalar on the tensor's device.

    Its state has the library's names, and its numbers but for rounding.
    """

    found_inf: Tensor

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # there is no loss to compute again
        """Make an update by the gradient; `lr` may be a scalar on the device, too."""
        group = self.param_groups[0]
        (weights,) = group["params"]
        state = self.state[weights] or self._started(weights)
        (beta1, beta2), good = group["betas"], 1.0 - self.found_inf
        state["step"] += good
        gradient = torch.where(good > 0, weights.grad, 0.0)  # numbers that are not finite stay so when multiplied by 0
        state["exp_avg"].lerp_(gradient, good * (1.0 - beta1))
        state["exp_inf"].mul_(1.0 + good * (beta2 - 1.0))
        torch.maximum(state["exp_inf"], gradient.abs_().add_(group["eps"]), out=state["exp_inf"])
        # Infinite for a rate of 0, so that nothing is added.
        scale = (beta1 ** state["step"].clamp(min=1.0) - 1.0) / (good * group["lr"])
        weights.addcdiv_(state["exp_avg"], state["exp_inf"] * scale)

    def _started(self, weights: Tensor) -> dict[str, Tensor]:
        """Make the state: updates so far, mean gradient, largest gradient."""
        moments = {name: torch.zeros_like(weights) for name in ("exp_avg", "exp_inf")}
        self.state[weights].update({"step": weights.new_zeros(()), **moments})
        return self.state[weights]
