"""Both distributions of a latent group, z and the KL in one pass over memory, with derivatives written out.

Plain operations on a whole batch wait for memory at every link; see `blockwise`. On GPUs the pass is compiled; see
`compiled`. Formulas and shapes are those of `gaussian`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..gaussian import LARGEST_STD, SMALLEST_STD, DiagonalGaussian, GaussianForm, RawGaussian
from .blockwise import blocks

Observe = Callable[[Tensor, DiagonalGaussian], None]
"""Called with the KL and the posterior of some images, [b, variates, H, W] each."""

Room = Sequence[Tensor | None]
"""Tensors that results are written to; None: they are new."""
NO_ROOM: Room = (None,) * 7


class Formulas(NamedTuple):
    """What is computed in one pass: as written for each block of images, compiled for a whole batch."""

    forward: Callable[..., Sequence[Tensor]]
    backward: Callable[..., Sequence[Tensor]]


def sample_and_kl(
    posterior: RawGaussian, prior: RawGaussian, noise: Tensor, form: GaussianForm, formulas: Formulas | None = None
) -> tuple[Tensor, Tensor]:
    """Return z = mean + std · noise of the posterior, [B, variates, H, W], and its KL from the prior in nats, [B].

    If gradients are wanted, derivatives are computed in the same pass, by `formulas` (None: as they are written);
    nothing else is saved for the backward pass.
    """
    if torch.compiler.is_compiling():  # the compiler makes one pass of the plain formulas
        z, kl = _sampled(form, noise, [*posterior, *prior])
        return z, kl
    wanted = torch.is_grad_enabled() and any(raw.requires_grad for raw in (*posterior, *prior))
    z, kl = _SampleAndKL.apply(form, wanted, formulas or FORMULAS, noise, *posterior, *prior)  # type: ignore[no-untyped-call]
    return z, kl


@torch.no_grad()
def observed_z(
    posterior: RawGaussian, prior: RawGaussian, noise: Tensor | None, form: GaussianForm, observe: Observe
) -> Tensor:
    """Return z of the posterior, [B, variates, H, W]: a sample for `noise`, the mean for None.

    Block by block, `observe` is called with the KL of each element from the prior in nats and the posterior; neither is
    ever held for the whole batch.
    """
    z = torch.empty_like(posterior.mean, dtype=torch.promote_types(posterior.mean.dtype, torch.float32))
    for part in blocks(len(z), z.shape[1:].numel(), z.device):
        p = form.distribution(RawGaussian(prior.mean[part], prior.scale[part]))
        q = form.relative(form.distribution(RawGaussian(posterior.mean[part], posterior.scale[part])), p)
        observe(q.kl(p), q)
        z[part] = q.mean if noise is None else q.sample(noise[part])
    return z


class _SampleAndKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, form: GaussianForm, wanted: bool, formulas: Formulas, noise: Tensor, *raws: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.form, ctx.dtype, ctx.formulas = form, raws[0].dtype, formulas
        compute = formulas.forward if wanted else _sampled
        if formulas is FORMULAS or not wanted:
            count = (5 if form.residual else 4) if wanted else 0
            dtype = torch.promote_types(ctx.dtype, torch.float32)
            z, *derivatives = (torch.empty_like(raws[0], dtype=dtype) for _ in range(1 + count))
            kl = z.new_empty(len(noise))
            for part in _blocks(noise):
                compute(form, noise[part], [x[part] for x in raws], [x[part] for x in (z, kl, *derivatives)])
        else:
            z, kl, *derivatives = compute(form, noise, raws)
        ctx.save_for_backward(*derivatives)
        return z, kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_z: Tensor, by_kl: Tensor) -> tuple[Tensor | None, ...]:
        given = (by_z, by_kl, *ctx.saved_tensors)
        if ctx.formulas is FORMULAS:
            room = [torch.empty_like(by_z) for _ in range(4)]
            for part in _blocks(by_z):
                ctx.formulas.backward(ctx.form, [x[part] for x in given], [x[part] for x in room])
            gradients = [gradient.to(ctx.dtype) for gradient in room]
        else:
            gradients = ctx.formulas.backward(ctx.form, given, NO_ROOM, ctx.dtype)
        return None, None, None, None, *gradients


def _blocks(of: Tensor) -> Iterator[slice]:
    return blocks(len(of), of.shape[1:].numel(), of.device)


def _sampled(form: GaussianForm, noise: Tensor, raws: Sequence[Tensor], room: Room = NO_ROOM) -> tuple[Tensor, Tensor]:
    """Compute z and the KL; `raws` are the posterior's mean and raw scale, and the prior's."""
    p = form.distribution(RawGaussian(*raws[2:]))
    q = form.relative(form.distribution(RawGaussian(*raws[:2])), p)
    return torch.addcmul(q.mean, q.std, noise, out=room[0]), _per_image(q.kl(p), room[1])


def _per_image(kl: Tensor, room: Tensor | None) -> Tensor:
    """Add up [b, variates, H, W] to [b]: on CPUs in the order that results depend on, which takes a copy."""
    if torch.compiler.is_compiling():
        return kl.sum(dim=(1, 2, 3))
    return torch.sum(kl.flatten(1), dim=1, out=room)


def _with_derivatives(form: GaussianForm, noise: Tensor, raws: Sequence[Tensor], room: Room = NO_ROOM) -> list[Tensor]:
    """Compute z, the KL, and derivatives: KL by the posterior's mean and both raw scales, z by the raw scales.

    With r = sq / sp and d = (mq - mp) / sp, KL = (r² + d² - 1) / 2 - log r has the derivatives
    dmq = d / sp = -dmp, dsq = (r - 1 / r) / sp, dsp = (1 - r² - d²) / sp; and z = mq + sq · noise has dsq = noise.
    """
    own_raw, p_raw = RawGaussian(*raws[:2]).widened(), RawGaussian(*raws[2:]).widened()
    own, p = form.distribution(own_raw), form.distribution(p_raw)
    q = form.relative(own, p)
    found = [torch.addcmul(q.mean, q.std, noise, out=room[0]), _per_image(q.kl(p), room[1])]
    inverse = p.std.reciprocal()
    ratio, shift = q.std * inverse, (q.mean - p.mean) * inverse
    found.append(torch.mul(shift, inverse, out=room[2]))
    by_q_std, prior_noise = ratio - ratio.reciprocal(), None
    if form.residual:  # r is the posterior's own std, whatever the prior's
        by_p_std = -shift.square() * inverse
        noise, prior_noise = noise * p.std, noise * own.std
    else:
        by_q_std.mul_(inverse)
        by_p_std = (1.0 - ratio.square()).addcmul_(shift, shift, value=-1.0).mul_(inverse)
    found.append(_through_scale(form, by_q_std, own_raw.scale, own.std, room[3]))
    found.append(_through_scale(form, by_p_std, p_raw.scale, p.std, room[4]))
    found.append(_through_scale(form, noise, own_raw.scale, own.std, room[5]))
    if prior_noise is not None:
        found.append(_through_scale(form, prior_noise, p_raw.scale, p.std, room[6]))
    return found


def _through_scale(form: GaussianForm, by_std: Tensor, scale: Tensor, std: Tensor, room: Tensor | None) -> Tensor:
    """Compute the derivative by the raw `scale`, from that by its `std`; 0 if the std was clamped."""
    if form.base == "std":
        by_scale = torch.ops.aten.softplus_backward(by_std, scale, form.beta, 20.0)
    else:
        by_scale = by_std * std * form.beta
    if room is None:
        return torch.ops.aten.hardtanh_backward(by_scale, std, SMALLEST_STD, LARGEST_STD)
    return torch.ops.aten.hardtanh_backward.grad_input(by_scale, std, SMALLEST_STD, LARGEST_STD, grad_input=room)


def _combined(
    form: GaussianForm, given: Sequence[Tensor], room: Room = NO_ROOM, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Compute the gradients of the raw outputs: the posterior's mean and scale, the prior's mean and scale.

    `given` are the gradients of z and of the KL, and what `_with_derivatives` gave. The results are of type `dtype`.
    """
    by_z, by_kl, kl_by_q_mean, kl_by_q_scale, kl_by_p_scale, z_by_q_scale, *of_residual = given
    by_kl = by_kl.view(-1, 1, 1, 1)
    by_shift = by_kl * kl_by_q_mean
    found = [
        torch.add(by_z, by_shift, out=room[0]),
        torch.addcmul(by_z * z_by_q_scale, by_kl, kl_by_q_scale, out=room[1]),
    ]
    if of_residual:  # the posterior's mean moves with the prior's, so that the KL does not change
        found.append(torch.mul(by_z, 1.0, out=room[2]))
        found.append(torch.addcmul(by_z * of_residual[0], by_kl, kl_by_p_scale, out=room[3]))
    else:
        found.append(torch.neg(by_shift, out=room[2]))
        found.append(torch.mul(by_kl, kl_by_p_scale, out=room[3]))
    return found if dtype is None else [gradient.to(dtype) for gradient in found]


FORMULAS = Formulas(_with_derivatives, _combined)
