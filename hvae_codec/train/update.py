"""One update of the weights: loss, gradients, skip or clip, optimiser, moving average."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import Config, OptimizerConfig
from ..model.hvae import HVAE, Noise
from .loss import training_loss
from .schedules import learning_rate


@dataclass(frozen=True)
class StepMetrics:
    """What one step gave; rate and distortion in bits/dim, averaged over the batch."""

    step: int
    loss: float
    """nats/dim, with the KL's weights of this step."""
    rate: float
    distortion: float
    grad_norm: float
    """Global norm before clipping."""
    learning_rate: float
    skipped: bool
    """Whether the update was left out: the norm was not finite or reached the threshold."""

    @property
    def nelbo(self) -> float:
        """bits/dim."""
        return self.rate + self.distortion


def make_optimizer(model: HVAE, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimiser that `config` names, over all parameters of `model`."""
    betas, parameters = (config.beta1, config.beta2), model.parameters()
    if config.name == "adam":
        return torch.optim.Adam(parameters, config.learning_rate, betas, config.epsilon, fused=True)
    return torch.optim.Adamax(parameters, config.learning_rate, betas, config.epsilon, foreach=True)


def make_ema(model: HVAE) -> dict[str, Tensor]:
    """A copy of the weights, to become their exponential moving average."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def update(
    model: HVAE,
    ema: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    config: Config,
    images: Tensor,
    noise: Noise,
    step: int,
) -> StepMetrics:
    """Train on uint8 `images` [B, C, H, W] at `step` (counted from 1); changes model, optimiser and `ema`."""
    optimizer.zero_grad(set_to_none=True)
    terms = model(images, noise)
    loss = training_loss(terms, config.model, config.loss, step)
    loss.backward()
    norm = _clipped_norm(model, config.optimizer.clip_norm)
    rate = learning_rate(config.optimizer, step)
    threshold = config.optimizer.skip_threshold or float("inf")
    skipped = not norm < threshold
    if not skipped:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        move_average(ema, model, config.train.ema_decay)
    with torch.no_grad():
        bits = model.nats_per_bit_dim
        kl, nll = terms.kl.sum(dim=0).mean() / bits, terms.nll.mean() / bits
    return StepMetrics(step, loss.item(), kl.item(), nll.item(), norm, rate, skipped)


@torch.no_grad()
def move_average(ema: dict[str, Tensor], model: HVAE, decay: float) -> None:
    """ema = decay · ema + (1 - decay) · weights, in this order of rounding, as the published models have it."""
    averages = list(ema.values())
    torch._foreach_mul_(averages, decay)
    torch._foreach_add_(averages, list(model.parameters()), alpha=1.0 - decay)


def _clipped_norm(model: HVAE, clip_norm: float | None) -> float:
    """Global gradient norm before clipping."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(list(model.parameters()), clip_norm, norm)
    return norm.item()
