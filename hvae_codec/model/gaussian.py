"""Diagonal Gaussians: from a network's raw output to a distribution, sampling, and the KL.

These are all the formulas of priors and posteriors. `kernels.sample_and_kl` computes the same in one pass over memory,
with derivatives written out; tests compare the two.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

ScaleBase = Literal["std", "logstd"]

# Scales outside these bounds would overflow the squares in the KL and the likelihood in float32.
SMALLEST_STD = 1e-8
LARGEST_STD = 1e8
_LOG_LARGEST = math.log(LARGEST_STD)
_FAR = 30.0  # standard deviations from the mean beyond which a bin is far
_NARROWEST = 1e-3  # difference of the two logarithms that float32 still has to three digits


def std_from_raw(raw: Tensor, base: ScaleBase, beta: float) -> Tensor:
    """Compute standard deviations from a network's raw output, with gradient smoothing `beta` (paper 4.2).

    Base `std`: softplus(raw, beta) = log(1 + exp(beta raw)) / beta. Base `logstd`: exp(beta raw). The result has the
    shape of `raw` and lies within [1e-8, 1e8], so that every loss computed from it is finite.
    """
    if base == "logstd":
        # Clamped before exp: an infinite exp has a NaN gradient even if a later clamp cuts it off.
        return torch.exp((raw * beta).clamp(-_LOG_LARGEST, _LOG_LARGEST))
    return F.softplus(raw, beta=beta).clamp(SMALLEST_STD, LARGEST_STD)


class DiagonalGaussian(NamedTuple):
    """Independent normal distributions, one per element of `mean` and `std` (same shapes)."""

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor, temperature: float = 1.0) -> Tensor:
        """Compute mean + temperature · std · noise, for standard normal `noise` of the same shape."""
        return torch.addcmul(self.mean, self.std, noise, value=temperature)

    def kl(self, prior: DiagonalGaussian) -> Tensor:
        """Compute KL(self || prior) of every element, in nats; exactly 0 if the two are equal.

        log(sp / sq) + (sq² + (mq - mp)²) / (2 sp²) - 1/2, written with ratios so that neither square overflows.
        """
        ratio = self.std / prior.std
        shift = (self.mean - prior.mean) / prior.std
        return torch.addcmul(ratio.square() - 1.0, shift, shift).mul(0.5) - ratio.log()

    def log_mass(self, z: Tensor, width: Tensor) -> Tensor:
        """Compute log of the mass in the bins of `width` around `z`, in nats: minus the ideal code length of z's bin.

        By symmetry both edges are taken at or below the mean's nearer side: log(F(a) - F(b)) = log F(a) +
        log(1 - F(b) / F(a)), whose terms are stable in both tails. Bins too narrow for that difference have
        the density times the width, and far ones Mills' ratio for F(a): float32 has no more there.
        """
        distance, half = (z - self.mean).abs() / self.std, 0.5 * width / self.std
        near = distance - half  # of the nearer edge from the mean, below 0 if the mean is in the bin
        upper = torch.special.log_ndtr(-near.clamp(max=_FAR))
        lower = torch.special.log_ndtr(-(distance + half).clamp(max=2.0 * _FAR))
        difference = upper - lower
        exact = upper + torch.log(-torch.expm1(-difference.clamp(min=_NARROWEST)))
        half_log = 0.5 * math.log(2.0 * math.pi)
        density = torch.log(2.0 * half) - 0.5 * distance.square() - half_log
        edge = near.clamp(min=_FAR)
        rest = torch.log(-torch.expm1(-(2.0 * edge * half).clamp(min=SMALLEST_STD)))
        far = -0.5 * edge.square() - half_log - torch.log(edge) + rest
        return torch.where(near > _FAR, far, torch.where(difference > _NARROWEST, exact, density))

    def variates(self, numbers: Tensor | None) -> DiagonalGaussian:
        """Select the variates `numbers`, int64 [k]: [B, k, H, W] of [B, variates, H, W]; all for None."""
        return self if numbers is None else DiagonalGaussian(self.mean[:, numbers], self.std[:, numbers])

    def where(self, mask: Tensor, other: DiagonalGaussian) -> DiagonalGaussian:
        """Take this at positions in `mask`, and `other` elsewhere; a pruned posterior is `q.where(mask, prior)`."""
        return DiagonalGaussian(torch.where(mask, self.mean, other.mean), torch.where(mask, self.std, other.std))


class RawGaussian(NamedTuple):
    """A network's output for one prior or posterior, [B, variates, H, W] each; halves of one tensor would be slower."""

    mean: Tensor
    scale: Tensor

    def variates(self, numbers: Tensor | None) -> RawGaussian:
        """Select the variates `numbers`, int64 [k]; all for None."""
        return self if numbers is None else RawGaussian(self.mean[:, numbers], self.scale[:, numbers])

    def widened(self) -> RawGaussian:
        """Convert to float32, or leave float64: KL and likelihood are computed in these."""
        dtype = torch.promote_types(self.mean.dtype, torch.float32)
        return RawGaussian(self.mean.to(dtype), self.scale.to(dtype))


class GaussianForm(NamedTuple):
    """How a network's raw output describes a prior or posterior."""

    base: ScaleBase
    beta: float  # gradient smoothing (paper 4.2)
    residual: bool = False  # relative to the prior (NVAE, arXiv 2007.03898, 3.2): means add, stds multiply

    def distribution(self, raw: RawGaussian) -> DiagonalGaussian:
        """Read the distribution that `raw` alone describes."""
        mean, scale = raw.widened()
        return DiagonalGaussian(mean, std_from_raw(scale, self.base, self.beta))

    def relative(self, own: DiagonalGaussian, prior: DiagonalGaussian) -> DiagonalGaussian:
        """Make the posterior from its own output `own` and its prior; log scales that add are stds that multiply."""
        return DiagonalGaussian(own.mean + prior.mean, own.std * prior.std) if self.residual else own


def rounded_posterior(
    form: GaussianForm, posterior: RawGaussian, prior: RawGaussian, steps: Tensor, variates: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the posterior's mean, rounded to a multiple of `steps` [k, 1, 1], and the code's length in nats.

    Both are [B, k, H, W], as the `posterior`; of the `prior` the `variates` are taken, see `RawGaussian.variates`.
    Gradients pass the rounding as if it were not there (straight-through).
    """
    own, p = form.distribution(posterior), form.distribution(prior).variates(variates)
    scaled = form.relative(own, p).mean / steps
    z = (scaled + (scaled.round() - scaled).detach()) * steps
    return z, -p.log_mass(z, steps)
