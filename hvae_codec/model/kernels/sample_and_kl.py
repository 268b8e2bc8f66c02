"""Both distributions of a latent group, z and the KL in one pass over memory, with derivatives written out.

Plain operations on a whole batch wait for memory at every link; see `blockwise`. Formulas and shapes are those of
`gaussian`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..gaussian import LARGEST_STD, SMALLEST_STD, GaussianForm, RawGaussian
from .blockwise import blocks

Observe = Callable[[Tensor, Tensor], None]
"""Called with the KL and the posterior's std of some images, [b, variates, H, W] each."""


class Formulas(NamedTuple):
    """What is computed in one pass, for each block of images; compiled or not."""

    forward: Callable[..., tuple[Tensor, ...]]
    backward: Callable[..., tuple[Tensor, ...]]


def sample_and_kl(
    posterior: RawGaussian, prior: RawGaussian, noise: Tensor, form: GaussianForm, formulas: Formulas | None = None
) -> tuple[Tensor, Tensor]:
    """Return z = mean + std · noise of the posterior, [B, variates, H, W], and its KL from the prior in nats, [B].

    If gradients are wanted, derivatives are computed in the same pass, by `formulas` (None: as they are written);
    nothing else is saved for the backward pass.
    """
    if torch.compiler.is_compiling():  # the compiler makes one pass of the plain formulas
        z, kl = _sampled(form, noise, *posterior, *prior)
        return z, kl
    wanted = torch.is_grad_enabled() and any(raw.requires_grad for raw in (*posterior, *prior))
    z, kl = _SampleAndKL.apply(form, wanted, formulas or FORMULAS, noise, *posterior, *prior)  # type: ignore[no-untyped-call]
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
    def forward(
        ctx: Any, form: GaussianForm, wanted: bool, formulas: Formulas, noise: Tensor, *raws: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.form, ctx.dtype, ctx.formulas = form, raws[0].dtype, formulas
        compute = formulas.forward if wanted else _sampled
        z, kl, *derivatives = _in_blocks(noise, lambda part: compute(form, *(x[part] for x in (noise, *raws))))
        ctx.save_for_backward(*derivatives)
        return z, kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_z: Tensor, by_kl: Tensor) -> tuple[Tensor | None, ...]:
        given = (by_z, by_kl, *ctx.saved_tensors)
        gradients = _in_blocks(by_z, lambda part: ctx.formulas.backward(ctx.form, ctx.dtype, *(x[part] for x in given)))
        return None, None, None, None, *gradients


def _in_blocks(like: Tensor, compute: Callable[[slice], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Compute tensors of a batch in blocks of images whose intermediates are as large as `like`."""
    first, *others = blocks(len(like), like.shape[1:].numel(), like.device)
    found = compute(first)
    if not others:
        return found
    whole = tuple(_empty_batch(len(like), x) for x in found)
    for part, of_part in itertools.chain([(first, found)], ((part, compute(part)) for part in others)):
        for out, x in zip(whole, of_part, strict=True):
            out[part] = x
    return whole


def _empty_batch(images: int, part: Tensor) -> Tensor:
    """Make room for `images`, in the type and memory format of a part of them."""
    return part.new_empty_strided((images, *part.shape[1:]), (part.shape[1:].numel(), *part.stride()[1:]))


def _sampled(
    form: GaussianForm, noise: Tensor, q_mean: Tensor, q_scale: Tensor, p_mean: Tensor, p_scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute z and the KL."""
    p = form.distribution(RawGaussian(p_mean, p_scale))
    q = form.relative(form.distribution(RawGaussian(q_mean, q_scale)), p)
    return q.sample(noise), _per_image(q.kl(p))


def _per_image(kl: Tensor) -> Tensor:
    """Add up [b, variates, H, W] to [b]: on CPUs in the order that results depend on, which takes a copy."""
    return kl.sum(dim=(1, 2, 3)) if torch.compiler.is_compiling() else kl.flatten(1).sum(dim=1)


def _with_derivatives(
    form: GaussianForm, noise: Tensor, q_mean: Tensor, q_scale: Tensor, p_mean: Tensor, p_scale: Tensor
) -> tuple[Tensor, ...]:
    """Compute z, the KL, and derivatives: KL by the posterior's mean and both raw scales, z by the raw scales.

    With r = sq / sp and d = (mq - mp) / sp, KL = (r² + d² - 1) / 2 - log r has the derivatives
    dmq = d / sp = -dmp, dsq = (r - 1 / r) / sp, dsp = (1 - r² - d²) / sp; and z = mq + sq · noise has dsq = noise.
    """
    own_raw, p_raw = RawGaussian(q_mean, q_scale).widened(), RawGaussian(p_mean, p_scale).widened()
    own, p = form.distribution(own_raw), form.distribution(p_raw)
    q = form.relative(own, p)
    z, kl = q.sample(noise), _per_image(q.kl(p))
    inverse = p.std.reciprocal()
    ratio, shift = q.std * inverse, (q.mean - p.mean) * inverse
    by_q_std = ratio - ratio.reciprocal()
    if form.residual:  # r is the posterior's own std, whatever the prior's
        by_p_std = -shift.square() * inverse
        of_residual = [_through_scale(form, noise * own.std, p_raw.scale, p.std)]
        noise = noise * p.std
    else:
        by_q_std.mul_(inverse)
        by_p_std = (1.0 - ratio.square()).addcmul_(shift, shift, value=-1.0).mul_(inverse)
        of_residual = []
    of_kl = (_through_scale(form, by_q_std, own_raw.scale, own.std), _through_scale(form, by_p_std, p_raw.scale, p.std))
    return z, kl, shift * inverse, *of_kl, _through_scale(form, noise, own_raw.scale, own.std), *of_residual


def _through_scale(form: GaussianForm, by_std: Tensor, scale: Tensor, std: Tensor) -> Tensor:
    """Compute the derivative by the raw `scale`, from that by its `std`; 0 if the std was clamped."""
    if form.base == "std":
        by_scale = torch.ops.aten.softplus_backward(by_std, scale, form.beta, 20.0)
    else:
        by_scale = by_std * std * form.beta
    return torch.ops.aten.hardtanh_backward(by_scale, std, SMALLEST_STD, LARGEST_STD)


def _combined(
    form: GaussianForm, dtype: torch.dtype, by_z: Tensor, by_kl: Tensor, *derivatives: Tensor
) -> tuple[Tensor, ...]:
    """Compute the gradients of the raw outputs: the posterior's mean and scale, the prior's mean and scale."""
    kl_by_q_mean, kl_by_q_scale, kl_by_p_scale, z_by_q_scale = derivatives[:4]
    by_kl = by_kl.view(-1, 1, 1, 1)
    by_shift = by_kl * kl_by_q_mean
    by_q = (by_z + by_shift, torch.addcmul(by_z * z_by_q_scale, by_kl, kl_by_q_scale))
    if form.residual:  # the posterior's mean moves with the prior's, so that the KL does not change
        by_p = (by_z.clone(), torch.addcmul(by_z * derivatives[4], by_kl, kl_by_p_scale))
    else:
        by_p = (-by_shift, by_kl * kl_by_p_scale)
    return tuple(gradient.to(dtype) for gradient in (*by_q, *by_p))


FORMULAS = Formulas(_with_derivatives, _combined)
