"""One update of the weights: loss, gradients, skip or clip, optimiser, moving average; no number reaches the host."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import Config, LossConfig, ModelConfig, TrainConfig
from ..model.choices import Noise
from ..model.hvae import HVAE, Terms
from ..model.precision import autocast, resolve_precision
from .optimizer import FlatOptimizer
from .schedules import StepNumbers

Network = Callable[[Tensor, Noise], Terms]
"""The model as a step calls it: compiled, checkpointed or in bfloat16, as the configuration says."""


def make_network(model: HVAE, config: TrainConfig) -> Network:
    """Prepare `model` as `config` says. Validation must use another model."""
    if config.checkpoint_activations:
        model.checkpoint_activations()
    if config.compile:
        model.compile_parts()
    precision = resolve_precision(config.precision, model.device.type)

    def network(images: Tensor, noise: Noise) -> Terms:
        with autocast(precision, model.device.type):
            terms: Terms = model(images, noise)
        return terms

    return network


class StepResult(NamedTuple):
    """The outcome of one step, as tensors on the model's device; means are over this process's images."""

    loss: Tensor  # []: nats/dim, with the KL's weights of this step
    rate: Tensor  # [groups]: bits/dim, mean over images
    distortion: Tensor  # []: bits/dim, mean over images
    grad_norm: Tensor  # []: global norm before clipping
    skipped: Tensor  # [] bool: whether the update was left out: the norm was not finite or reached the threshold
    bad_image: Tensor  # [] int64: place in the batch of the first image whose terms are not finite, -1 if there is none


def update(
    network: Network,
    optimizer: FlatOptimizer,
    config: Config,
    images: Tensor,
    noise: Noise,
    step: int | StepNumbers,
    mean_over_processes: Callable[[Tensor], Tensor] = lambda own: own,
) -> StepResult:
    """Train on uint8 `images` [B, C, H, W] at `step` (from 1, or its numbers); changes the weights through `optimizer`.

    `mean_over_processes` averages a tensor over all processes: gradients, and what the groups' balance depends on.
    """
    numbers = step if isinstance(step, StepNumbers) else StepNumbers.at(config, step)
    optimizer.zero_grad()
    terms = network(images, noise)
    loss = training_loss(terms, config.model, config.loss, numbers, mean_over_processes)
    optimizer.backward(loss)
    optimizer.average(mean_over_processes)
    return apply_gradients(optimizer, config, numbers, loss, terms)


@torch.no_grad()
def apply_gradients(
    optimizer: FlatOptimizer, config: Config, numbers: StepNumbers, loss: Tensor, terms: Terms
) -> StepResult:
    """Update the weights by the gradients that `optimizer` holds of `loss`, whose terms of all images are `terms`."""
    norm, skipped = optimizer.step(numbers.learning_rate)
    bits = config.model.nats_per_bit_dim
    bad = ~torch.isfinite(terms.nll + terms.kl.sum(dim=0))
    bad_image = torch.where(bad.any(), bad.int().argmax(), -1)
    rate, distortion = terms.kl.mean(dim=1) / bits, terms.nll.mean() / bits
    return StepResult(loss.detach(), rate, distortion, norm, skipped, bad_image)


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
    kl = mean_kl(terms, model)
    if numbers.balanced:
        kl = kl * balance(mean_over_processes(kl.detach()), model, loss)
    return distortion + numbers.kl_weight * kl.sum()


def mean_kl(terms: Terms, model: ModelConfig) -> Tensor:
    """Average each group's KL over the images, [groups], nats/dim."""
    return terms.kl.mean(dim=1) / model.image_dims


def balance(kl: Tensor, model: ModelConfig, loss: LossConfig) -> Tensor:
    """Compute alpha_i = n a_i / sum(a), [groups], without gradient; a_i: a group's KL, or KL per dimension.

    n counts the groups that have variates.
    """
    share = kl.detach().clamp(min=0.0)  # rounding may leave a KL of 0 below 0
    if loss.balance_by_size:
        share = share / _group_dims(model, kl.device)
    # All groups may have collapsed; equal zeros then weigh nothing, rather than 0 / 0.
    return (
        sum(group.variates > 0 for group in model.groups) * share / share.sum().clamp(min=torch.finfo(share.dtype).tiny)
    )


@functools.cache  # a copy to a GPU makes the host wait for it
def _group_dims(model: ModelConfig, device: torch.device) -> Tensor:
    """Count the latent dimensions of each group, [groups]; 1 for one that has none, as its KL of 0 is divided by it."""
    return torch.tensor([float(max(group.dims, 1)) for group in model.groups], device=device)
