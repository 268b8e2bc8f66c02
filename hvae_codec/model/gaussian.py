"""Diagonal Gaussians: how a network's raw output becomes a scale, sampling, and the only KL formula."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

ScaleBase = Literal["std", "logstd"]

# Scales outside these bounds would overflow the squares in the KL and the likelihood in float32.
SMALLEST_STD = 1e-8
LARGEST_STD = 1e8
_LOG_LARGEST = 18.420680743952367  # log(1e8)


def std_from_raw(raw: Tensor, base: ScaleBase, beta: float) -> Tensor:
    """Standard deviation from a network's raw output, with gradient smoothing `beta` (paper 4.2).

    Base `std`: softplus(raw, beta) = log(1 + exp(beta raw)) / beta. Base `logstd`: exp(beta raw). The result has the
    shape of `raw` and lies within [1e-8, 1e8], so that every loss computed from it is finite.
    """
    if base == "logstd":
        # Clamped before exp: an infinite exp has a NaN gradient even where the clamp would cut it off.
        return torch.exp((raw * beta).clamp(-_LOG_LARGEST, _LOG_LARGEST))
    return F.softplus(raw, beta=beta).clamp(SMALLEST_STD, LARGEST_STD)


class DiagonalGaussian(NamedTuple):
    """Independent normal distributions, one an element of `mean` and `std` (same shapes)."""

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor, temperature: float = 1.0) -> Tensor:
        """mean + temperature * std * noise, for standard normal `noise` of the same shape."""
        return torch.addcmul(self.mean, self.std, noise, value=temperature)

    def kl(self, prior: DiagonalGaussian) -> Tensor:
        """KL(self || prior) of every element, in nats; exactly 0 where the two are equal.

        log(sp / sq) + (sq² + (mq - mp)²) / (2 sp²) - 1/2, written with ratios so that neither square overflows.
        """
        ratio = self.std / prior.std
        shift = (self.mean - prior.mean) / prior.std
        return 0.5 * (ratio.square() + shift.square() - 1.0) - ratio.log()

    def where(self, mask: Tensor, other: DiagonalGaussian) -> DiagonalGaussian:
        """This distribution where `mask` is True, `other` elsewhere; a pruned posterior is `q.where(mask, prior)`."""
        return DiagonalGaussian(torch.where(mask, self.mean, other.mean), torch.where(mask, self.std, other.std))
