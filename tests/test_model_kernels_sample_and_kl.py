"""Both distributions, z and KL in one pass, compared with the plain formulas."""

from __future__ import annotations

import pytest
import torch

from hvae_codec.model.gaussian import GaussianForm, RawGaussian
from hvae_codec.model.kernels import blockwise
from hvae_codec.model.kernels.sample_and_kl import sample_and_kl

FORMS = [GaussianForm(base, 0.6931472, residual) for base in ("std", "logstd") for residual in (False, True)]


def raw_gaussians(shape=(3, 2, 4, 4), dtype=torch.float64) -> list[torch.Tensor]:
    """Means and raw scales of a posterior and a prior."""
    return [torch.randn(shape, dtype=dtype).requires_grad_() for _ in range(4)]


def plain(raws: list[torch.Tensor], noise: torch.Tensor, form: GaussianForm) -> tuple[torch.Tensor, torch.Tensor]:
    prior = form.distribution(RawGaussian(*raws[2:]))
    posterior = form.relative(form.distribution(RawGaussian(*raws[:2])), prior)
    return posterior.sample(noise), posterior.kl(prior).flatten(1).sum(dim=1)


def in_one_pass(raws, noise, form):
    return sample_and_kl(RawGaussian(*raws[:2]), RawGaussian(*raws[2:]), noise, form)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_one_pass_has_the_gradient_of_its_values(form):
    noise = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *raws: in_one_pass(raws, noise, form), raw_gaussians())


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("last", [torch.channels_last, torch.contiguous_format])
def test_one_pass_is_the_plain_formulas(form, last, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(blockwise, "BLOCK_ELEMENTS", 70)  # two images a block, and one left over
    raws = [r.detach().float().to(memory_format=last).requires_grad_() for r in raw_gaussians((5, 2, 4, 4))]
    noise = torch.randn(5, 2, 4, 4)
    weights = torch.randn(5, 2, 4, 4), torch.randn(5)
    results = []
    for function in (in_one_pass, plain):
        z, kl = function(raws, noise, form)
        loss = (z * weights[0]).sum() + (kl * weights[1]).sum()
        results.append((z, kl, *torch.autograd.grad(loss, raws)))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=2e-5, atol=2e-5)


def test_one_pass_has_no_gradient_where_stds_are_clamped():
    form = GaussianForm("std", 0.6931472)
    raws = [torch.full((1, 1, 1, 1), value, requires_grad=True) for value in (0.0, -100.0, 0.0, 0.0)]
    _, kl = in_one_pass(raws, torch.zeros(1, 1, 1, 1), form)
    kl.sum().backward()
    assert raws[1].grad.item() == 0.0
    assert raws[3].grad.item() != 0.0


def test_one_pass_of_bfloat16_computes_in_float32():
    form, noise = GaussianForm("std", 0.6931472), torch.randn(2, 2, 4, 4)
    raws = [r.detach().bfloat16().requires_grad_() for r in raw_gaussians((2, 2, 4, 4))]
    z, kl = in_one_pass(raws, noise, form)
    expected = plain([r.detach().float() for r in raws], noise, form)
    assert (z.dtype, kl.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close((z.detach(), kl.detach()), expected)
    kl.sum().backward()
    assert {r.grad.dtype for r in raws} == {torch.bfloat16}
