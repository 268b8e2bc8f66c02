"""The training loss: distortion plus the weighted, at first balanced, KL (paper appendix A)."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ..config import LossConfig, ModelConfig
from ..model.hvae import Terms
from .schedules import StepNumbers


def training_loss(
    terms: Terms,
    model: ModelConfig,
    loss: LossConfig,
    numbers: StepNumbers,
    mean_over_processes: Callable[[Tensor], Tensor] = lambda own: own,
) -> Tensor:
    """Compute the loss, nats/dim: mean distortion + KL weight · sum of the groups' mean KL, each times its alpha.

    The alphas are those of all processes' images, which `mean_over_processes` averages over.
    """
    distortion = terms.nll.mean() / model.image_dims
    kl = terms.kl.mean(dim=1) / model.image_dims
    if numbers.balanced is not False:
        alphas = balance(mean_over_processes(kl.detach()), model, loss)
        if isinstance(numbers.balanced, Tensor):
            alphas = torch.where(numbers.balanced, alphas, 1.0)
        kl = kl * alphas
    return distortion + numbers.kl_weight * kl.sum()


def balance(kl: Tensor, model: ModelConfig, loss: LossConfig) -> Tensor:
    """Compute alpha_i = n a_i / sum(a), [groups], without gradient; a_i: a group's KL, or KL per dimension."""
    share = kl.detach().clamp(min=0.0)  # rounding may leave a KL of 0 below 0
    if loss.balance_by_size:
        share = share / _group_dims(model, kl.device)
    # All groups may have collapsed; equal zeros then weigh nothing, rather than 0 / 0.
    return len(share) * share / share.sum().clamp(min=torch.finfo(share.dtype).tiny)


@functools.cache  # a copy to a GPU makes the host wait for it
def _group_dims(model: ModelConfig, device: torch.device) -> Tensor:
    """Count the latent dimensions of each group, [groups]."""
    return torch.tensor([float(group.dims) for group in model.groups], device=device)
