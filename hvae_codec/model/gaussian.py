"""Diagonal Gaussians: how a network's raw output becomes a scale, sampling, and the only KL formula.

`sample_and_kl` is what training runs: both distributions, z and the KL in one pass over memory, with a backward pass of
its own. Tests hold it to the plain formulas above it.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .blockwise import blocks

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


class GaussianForm(NamedTuple):
    """How a network's raw output [B, 2 · variates, H, W] (means, then raw scales) describes a prior or posterior."""

    base: ScaleBase
    beta: float
    """Gradient smoothing (paper 4.2)."""
    residual: bool = False
    """Whether a posterior is relative to its prior (NVAE): means add, stds multiply."""

    def distribution(self, raw: Tensor) -> DiagonalGaussian:
        """The distribution that `raw` alone describes; computed in float32, or float64 where that is given."""
        mean, scale = _halves(raw)
        return DiagonalGaussian(mean, std_from_raw(scale, self.base, self.beta))

    def posterior(self, raw: Tensor, prior: DiagonalGaussian) -> DiagonalGaussian:
        """The posterior that `raw` describes beside its prior."""
        q = self.distribution(raw)
        if self.residual:
            # Raw log scales that add (base logstd) are stds that multiply: one formula for both bases.
            return DiagonalGaussian(q.mean + prior.mean, q.std * prior.std)
        return q

    def raw_gradient(self, mean: Tensor, std: Tensor, scale: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of both halves of the raw output from those of mean and std; `value` is the std itself."""
        if self.base == "std":
            std = torch.ops.aten.softplus_backward(std, scale, self.beta, 20.0)
        else:
            std = std * value * self.beta
        # No gradient where the std was clamped.
        return mean, torch.ops.aten.hardtanh_backward(std, value, SMALLEST_STD, LARGEST_STD)


def _halves(raw: Tensor) -> list[Tensor]:
    # Halves of a channels-last tensor are strided; copies of them are several times faster to work on.
    last = torch.channels_last if raw.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    wide = raw.to(torch.promote_types(raw.dtype, torch.float32))
    return [half.contiguous(memory_format=last) for half in wide.chunk(2, dim=1)]


def sample_and_kl(posterior_raw: Tensor, prior_raw: Tensor, noise: Tensor, form: GaussianForm) -> tuple[Tensor, Tensor]:
    """z = mean + std · noise of the posterior, [B, variates, H, W], and its KL from the prior in nats, [B].

    The raw outputs are [B, 2 · variates, H, W]. Keeps nothing but them and the noise for the backward pass.
    """
    z, kl = _SampleAndKL.apply(posterior_raw, prior_raw, noise, form)
    return z, kl


class _SampleAndKL(torch.autograd.Function):
    """In blocks that fit into the cache: on a CPU, an operation on a whole batch waits for memory."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, posterior_raw: Tensor, prior_raw: Tensor, noise: Tensor, form: GaussianForm
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(posterior_raw, prior_raw, noise)
        ctx.form = form
        dtype = torch.promote_types(posterior_raw.dtype, torch.float32)
        z = torch.empty_like(posterior_raw[:, : noise.shape[1]], dtype=dtype)
        kl = posterior_raw.new_empty(len(noise), dtype=dtype)
        for part in blocks(len(noise), noise[0].numel(), noise.device):
            p = form.distribution(prior_raw[part])
            q = form.posterior(posterior_raw[part], p)
            torch.addcmul(q.mean, q.std, noise[part], out=z[part])
            torch.sum(q.kl(p).flatten(1), dim=1, out=kl[part])
        return z, kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, z_gradient: Tensor, kl_gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        posterior_raw, prior_raw, noise = ctx.saved_tensors
        of_posterior, of_prior = torch.empty_like(posterior_raw), torch.empty_like(prior_raw)
        variates = noise.shape[1]
        for part in blocks(len(noise), noise[0].numel(), noise.device):
            gradients = _raw_gradients(
                ctx.form, posterior_raw[part], prior_raw[part], noise[part], z_gradient[part], kl_gradient[part]
            )
            for whole, (mean, scale) in zip((of_posterior, of_prior), gradients, strict=True):
                whole[part, :variates] = mean
                whole[part, variates:] = scale
        return of_posterior, of_prior, None, None


def _raw_gradients(
    form: GaussianForm, posterior_raw: Tensor, prior_raw: Tensor, noise: Tensor, by_z: Tensor, by_kl: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Gradients of the raw outputs: of the posterior's means and scales, of the prior's means and scales.

    With r = sq / sp and d = (mq - mp) / sp, KL = (r² + d² - 1) / 2 - log r has the derivatives
    dmq = d / sp, dmp = -d / sp, dsq = (r - 1 / r) / sp, dsp = (1 - r² - d²) / sp; z = mq + sq · noise adds its own.
    """
    (q_mean, q_scale), (p_mean, p_scale) = _halves(posterior_raw), _halves(prior_raw)
    p_std = own_p_std = std_from_raw(p_scale, form.base, form.beta)
    q_std = own_q_std = std_from_raw(q_scale, form.base, form.beta)
    if form.residual:
        q_std = q_std * p_std
    kl = (by_kl.to(p_std.dtype).view(-1, 1, 1, 1) / p_std)  # what all derivatives of the KL are multiplied by
    ratio = q_std / p_std
    shift = q_mean / p_std if form.residual else (q_mean - p_mean) / p_std
    by_shift = kl * shift
    by_q_mean = by_z + by_shift
    by_q_std = torch.addcmul(by_z * noise, kl, ratio - 1.0 / ratio)
    by_p_mean = -by_shift
    by_p_std = kl * (1.0 - ratio.square() - shift.square())
    if form.residual:
        by_p_mean = by_p_mean + by_q_mean
        by_p_std = torch.addcmul(by_p_std, by_q_std, own_q_std)
        by_q_std = by_q_std * p_std
    return (
        form.raw_gradient(by_q_mean, by_q_std, q_scale, own_q_std),
        form.raw_gradient(by_p_mean, by_p_std, p_scale, own_p_std),
    )
