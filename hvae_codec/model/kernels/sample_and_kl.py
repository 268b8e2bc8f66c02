"""Both distributions of a latent group, z and the KL in one pass over memory, with derivatives written out.

Plain operations on a whole batch wait for memory at every link; see `blockwise`. Formulas and shapes are those of
`gaussian`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..gaussian import LARGEST_STD, SMALLEST_STD, DiagonalGaussian, GaussianForm, RawGaussian
from .blockwise import blocks

Observe = Callable[[Tensor, Tensor], None]
"""Called with the KL and the posterior's std of some images, [b, variates, H, W] each."""


def sample_and_kl(
    posterior: RawGaussian, prior: RawGaussian, noise: Tensor, form: GaussianForm
) -> tuple[Tensor, Tensor]:
    """Return z = mean + std · noise of the posterior, [B, variates, H, W], and its KL from the prior in nats, [B].

    If gradients are wanted, derivatives are computed in the same pass; nothing else is saved for the backward pass.
    """
    if torch.compiler.is_compiling():  # the compiler makes one pass of the plain formulas
        p = form.distribution(prior)
        q = form.relative(form.distribution(posterior), p)
        return q.sample(noise), q.kl(p).flatten(1).sum(dim=1)
    wanted = torch.is_grad_enabled() and any(raw.requires_grad for raw in (*posterior, *prior))
    z, kl = _SampleAndKL.apply(form, wanted, noise, *posterior, *prior)  # type: ignore[no-untyped-call]
    return z, kl


@torch.no_grad()
def observed_z(
    posterior: RawGaussian, prior: RawGaussian, noise: Tensor | None, form: GaussianForm, observe: Observe
) -> Tensor:
    """Return z of the posterior, [B, variates, H, W]: a sample for `noise`, the mean for None.

    Block by block, `observe` is called with the KL of each element from the prior in nats and the posterior's std;
    neither is ever held for the whole batch.
    """
    z = torch.empty_like(posterior.mean, dtype=torch.promote_types(posterior.mean.dtype, torch.float32))
    for part in blocks(len(z), z.shape[1:].numel(), z.device):
        p = form.distribution(RawGaussian(prior.mean[part], prior.scale[part]))
        q = form.relative(form.distribution(RawGaussian(posterior.mean[part], posterior.scale[part])), p)
        observe(q.kl(p), q.std)
        z[part] = q.mean if noise is None else q.sample(noise[part])
    return z


class _SampleAndKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, form: GaussianForm, wanted: bool, noise: Tensor, *raws: Tensor) -> tuple[Tensor, Tensor]:
        ctx.form, ctx.dtype = form, raws[0].dtype
        dtype = torch.promote_types(ctx.dtype, torch.float32)
        count = (5 if form.residual else 4) if wanted else 0
        z, *derivatives = (torch.empty_like(raws[0], dtype=dtype) for _ in range(1 + count))
        kl = z.new_empty(len(noise))
        for part in blocks(len(noise), noise.shape[1:].numel(), noise.device):
            own_raw = RawGaussian(raws[0][part], raws[1][part]).widened()
            p_raw = RawGaussian(raws[2][part], raws[3][part]).widened()
            own, p = form.distribution(own_raw), form.distribution(p_raw)
            q = form.relative(own, p)
            torch.addcmul(q.mean, q.std, noise[part], out=z[part])
            torch.sum(q.kl(p).flatten(1), dim=1, out=kl[part])
            if wanted:
                _derivatives(form, own_raw.scale, p_raw.scale, own, q, p, noise[part], [d[part] for d in derivatives])
        ctx.save_for_backward(*derivatives)
        return z, kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_z: Tensor, by_kl: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        gradients = [torch.empty_like(by_z) for _ in range(4)]
        for part in blocks(len(by_z), by_z.shape[1:].numel(), by_z.device):
            _combine(ctx.form, by_z[part], by_kl[part], [d[part] for d in saved], [g[part] for g in gradients])
        return None, None, None, *(gradient.to(ctx.dtype) for gradient in gradients)


def _derivatives(
    form: GaussianForm,
    q_scale: Tensor,
    p_scale: Tensor,
    own: DiagonalGaussian,
    q: DiagonalGaussian,
    p: DiagonalGaussian,
    noise: Tensor,
    out: Sequence[Tensor],
) -> None:
    """Fill `out`: KL by the posterior's mean, its raw scale and the prior's raw scale; z by the raw scales.

    With r = sq / sp and d = (mq - mp) / sp, KL = (r² + d² - 1) / 2 - log r has the derivatives
    dmq = d / sp = -dmp, dsq = (r - 1 / r) / sp, dsp = (1 - r² - d²) / sp; and z = mq + sq · noise has dsq = noise.
    """
    inverse = p.std.reciprocal()
    ratio, shift = q.std * inverse, (q.mean - p.mean) * inverse
    torch.mul(shift, inverse, out=out[0])
    by_q_std = ratio - ratio.reciprocal()
    if form.residual:  # r is the posterior's own std, whatever the prior's
        by_p_std = -shift.square() * inverse
        _through_scale(form, noise * own.std, p_scale, p.std, out[4])
        noise = noise * p.std
    else:
        by_q_std.mul_(inverse)
        by_p_std = (1.0 - ratio.square()).addcmul_(shift, shift, value=-1.0).mul_(inverse)
    _through_scale(form, by_q_std, q_scale, own.std, out[1])
    _through_scale(form, by_p_std, p_scale, p.std, out[2])
    _through_scale(form, noise, q_scale, own.std, out[3])


def _through_scale(form: GaussianForm, by_std: Tensor, scale: Tensor, std: Tensor, out: Tensor) -> None:
    """Fill `out` with the derivative by the raw `scale`, from that by its `std`; 0 if the std was clamped."""
    if form.base == "std":
        by_scale = torch.ops.aten.softplus_backward(by_std, scale, form.beta, 20.0)
    else:
        by_scale = by_std * std * form.beta
    torch.ops.aten.hardtanh_backward.grad_input(by_scale, std, SMALLEST_STD, LARGEST_STD, grad_input=out)


def _combine(
    form: GaussianForm, by_z: Tensor, by_kl: Tensor, derivatives: Sequence[Tensor], out: Sequence[Tensor]
) -> None:
    """Fill `out` with the gradients of the raw outputs: the posterior's mean and scale, the prior's mean and scale."""
    kl_by_q_mean, kl_by_q_scale, kl_by_p_scale, z_by_q_scale = derivatives[:4]
    by_kl = by_kl.view(-1, 1, 1, 1)
    by_shift = by_kl * kl_by_q_mean
    torch.add(by_z, by_shift, out=out[0])
    torch.addcmul(by_z * z_by_q_scale, by_kl, kl_by_q_scale, out=out[1])
    if form.residual:  # the posterior's mean moves with the prior's, so that the KL does not change
        out[2].copy_(by_z)
        torch.addcmul(by_z * derivatives[4], by_kl, kl_by_p_scale, out=out[3])
    else:
        torch.neg(by_shift, out=out[2])
        torch.mul(by_kl, kl_by_p_scale, out=out[3])
