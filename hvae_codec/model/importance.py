"""The importance-weighted bound (Burda, Grosse, Salakhutdinov 2016, arXiv 1509.00519).

With z_1 ... z_K from the posterior,

    log p(x)  >=  E log 1/K sum_k p(x, z_k) / q(z_k | x)  >=  ELBO,

with equality on the right at K = 1. It grows with K towards log p(x). Everything is in nats and float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UsageError
from .bottom_up import Activations
from .choices import Noise, RoundedPosterior
from .gaussian import DiagonalGaussian
from .hvae import HVAE
from .likelihood import Likelihood
from .precision import full_float32
from .top_down import LatentGroup


class PosteriorEstimates(NamedTuple):
    """Estimates from K posterior samples of each image of a batch, in nats, float64."""

    kl: Tensor  # [groups, B]: analytic KL of each latent group, average over the samples
    nll: Tensor  # [likelihoods, B]: -log p(x | z) under each likelihood, average over the samples
    bound: Tensor  # [likelihoods, B]: -log 1/K sum_k p(x, z_k) / q(z_k | x), at most the average of single samples


def log_density_ratio(posterior: DiagonalGaussian, prior: DiagonalGaussian, noise: Tensor, z: Tensor) -> Tensor:
    """Compute log p(z) - log q(z) of every element at z = q.mean + q.std · noise, in nats; on average -KL(q || p).

    q's exponent is taken from the noise itself: (z - q.mean) / q.std has lost it if q.std is far below q.mean.
    """
    squares = noise.square() - ((z - prior.mean) / prior.std).square()
    return 0.5 * squares + (posterior.std / prior.std).log()


@dataclass
class WeighedPosterior:
    """Chooses z from the posterior, or the prior where pruned; remembers each group's KL and log-density ratio at z."""

    noise: Noise
    keep: Sequence[Tensor] | None = None  # of each group, True = keep, to broadcast against z; None: everything
    kl: list[Tensor] = field(default_factory=list)  # [B] nats of each group seen so far
    log_ratio: list[Tensor] = field(default_factory=list)  # [B] log p(z) - log q(z) of each group seen so far, in nats

    def __call__(self, group: LatentGroup) -> Tensor:
        """Choose z of `group`, [B, variates, H, W]."""
        q, p = group.posterior(), group.prior
        if self.keep is not None:
            q = q.where(self.keep[group.index], p)
        noise = self.noise(group)
        z = q.sample(noise)
        self.kl.append(q.kl(p).flatten(1).sum(dim=1, dtype=torch.float64))
        self.log_ratio.append(log_density_ratio(q, p, noise, z).flatten(1).sum(dim=1, dtype=torch.float64))
        return z


@torch.no_grad()
@full_float32()
def posterior_estimates(
    model: HVAE,
    images: Tensor,
    activations: Activations,
    noise: Noise,
    samples: int = 1,
    *,
    likelihoods: Sequence[Likelihood] = (),
    on_sample: Callable[[int], None] | None = None,
) -> PosteriorEstimates:
    """Estimate KL, -log p(x | z) and importance-weighted bound of `images`, uint8 [B, C, H, W], from `samples` passes.

    `activations` are those of `model.activations(images)`. `noise` is asked for each group once a pass and must give
    fresh numbers each time. `likelihoods` (the model's own, if empty) all read the same outputs. `on_sample` is called
    with the passes done. Memory does not grow with `samples`. Raises `UsageError` if `samples` is below 1.
    """
    if samples < 1:
        raise UsageError(f"the number of posterior samples is {samples}; it must be at least 1")
    likelihoods = likelihoods or (model.likelihood,)
    images = images.to(model.device)
    log_sum = torch.full((len(likelihoods), len(images)), -torch.inf, dtype=torch.float64, device=model.device)
    kl = nll = log_sum.new_zeros(())
    for done in range(1, samples + 1):
        output, kl_k, log_ratio = _weighed(model, activations, noise, len(images))
        nll_k = torch.stack([likelihood.nll(output, images).double() for likelihood in likelihoods])
        kl = kl + kl_k
        nll = nll + nll_k
        log_sum = torch.logaddexp(log_sum, log_ratio - nll_k)
        if on_sample is not None:
            on_sample(done)
    return PosteriorEstimates(kl / samples, nll / samples, math.log(samples) - log_sum)


def _weighed(model: HVAE, activations: Activations, noise: Noise, images: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return output, KL of each group [groups, B] and log p(z) - log q(z) [B] of one choice of z.

    Codes have no other choice: q(z) = 1.
    """
    if model.config.learned_steps:
        codes = RoundedPosterior(model.kept)
        output = model.top_down(activations, codes, images)
        return output, codes.kl.double(), -codes.kl.double().sum(dim=0)
    choose = WeighedPosterior(noise, model.keep)
    output = model.top_down(activations, choose, images)
    return output, torch.stack(choose.kl), torch.stack(choose.log_ratio).sum(dim=0)


def importance_bound(model: HVAE, images: Tensor, noise: Noise, samples: int) -> Tensor:
    """Estimate the importance-weighted bound of -log p(x) for uint8 `images` [B, C, H, W], in nats, float64 [B].

    Raises `DataError` if the images are not what the model was made for, `UsageError` if `samples` is below 1.
    """
    with torch.no_grad():
        activations = model.activations(images)
    return posterior_estimates(model, images, activations, noise, samples).bound[0]
