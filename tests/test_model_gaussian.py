from __future__ import annotations

import itertools

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from hvae_codec.model.gaussian import DiagonalGaussian, std_from_raw

MEANS = hnp.arrays(np.float64, (2, 3, 2, 2), elements=st.floats(-50, 50))
STDS = hnp.arrays(np.float64, (2, 3, 2, 2), elements=st.floats(1e-4, 1e4))
EXTREMES = [-1e4, -100.0, -26.0, -1.0, 0.0, 1.0, 26.0, 100.0, 1e4]


def gaussian(mean: np.ndarray, std: np.ndarray) -> DiagonalGaussian:
    return DiagonalGaussian(torch.from_numpy(mean), torch.from_numpy(std))


@given(MEANS, STDS, MEANS, STDS)
def test_kl_is_torchs(mean_q, std_q, mean_p, std_p):
    q, p = gaussian(mean_q, std_q), gaussian(mean_p, std_p)
    expected = kl_divergence(Normal(q.mean, q.std), Normal(p.mean, p.std))
    torch.testing.assert_close(q.kl(p), expected, rtol=1e-9, atol=1e-9)


@given(MEANS, STDS)
def test_kl_of_equal_distributions_is_exactly_zero(mean, std):
    for dtype in (torch.float32, torch.float64):
        q = DiagonalGaussian(torch.from_numpy(mean).to(dtype), torch.from_numpy(std).to(dtype))
        assert (q.kl(q) == 0).all()
        assert (q.kl(DiagonalGaussian(q.mean.clone(), q.std.clone())) == 0).all()


def test_kl_of_nearly_equal_distributions_is_not_negative():
    """The terms cancel in float32; what is left must be as near to the true value as rounding allows."""
    std = 1 + torch.arange(-100_000, 100_000).double().mul(6e-8).float()
    p = DiagonalGaussian(torch.zeros_like(std), torch.ones_like(std))
    kl = DiagonalGaussian(p.mean, std).kl(p)
    exact = DiagonalGaussian(p.mean.double(), std.double()).kl(DiagonalGaussian(p.mean.double(), p.std.double()))
    assert (kl >= 0).all()
    assert (kl - exact).abs().max() < 1e-7


def test_masked_posterior_is_the_prior_where_pruned():
    q, p = (DiagonalGaussian(torch.randn(2, 4, 3, 3), torch.rand(2, 4, 3, 3) + 0.1) for _ in range(2))
    mask = torch.tensor([True, False, True, False])[:, None, None]
    merged = q.where(mask, p)
    kl, noise = merged.kl(p), torch.randn(2, 4, 3, 3)
    assert (kl[:, [1, 3]] == 0).all()
    torch.testing.assert_close(kl[:, [0, 2]], q.kl(p)[:, [0, 2]], rtol=0, atol=0)
    torch.testing.assert_close(merged.sample(noise)[:, 1], p.sample(noise)[:, 1], rtol=0, atol=0)
    assert (q.where(torch.zeros(4, 1, 1, dtype=torch.bool), p).kl(p) == 0).all()


def test_sample_is_mean_plus_temperature_times_std_times_noise():
    q, noise = DiagonalGaussian(torch.randn(2, 4, 3, 3), torch.rand(2, 4, 3, 3)), torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(q.sample(noise, 0.7), q.mean + 0.7 * q.std * noise)
    torch.testing.assert_close(q.sample(noise, 0.0), q.mean, rtol=0, atol=0)


@pytest.mark.parametrize("beta", [0.6931472, 1.0])
def test_scale_bases(beta):
    raw = torch.linspace(-6, 6, 101, dtype=torch.float64)
    torch.testing.assert_close(std_from_raw(raw, "std", beta), torch.log(1 + torch.exp(beta * raw)) / beta)
    torch.testing.assert_close(std_from_raw(raw, "logstd", beta), torch.exp(beta * raw))


@pytest.mark.parametrize("base", ["std", "logstd"])
def test_gradients(base):
    def kl(mean_q, raw_q, mean_p, raw_p):
        q = DiagonalGaussian(mean_q, std_from_raw(raw_q, base, 0.6931472))
        return q.kl(DiagonalGaussian(mean_p, std_from_raw(raw_p, base, 0.6931472)))

    inputs = [torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    assert torch.autograd.gradcheck(kl, inputs)


@pytest.mark.parametrize("base", ["std", "logstd"])
@pytest.mark.parametrize("beta", [0.6931472, 1.0])
def test_extreme_outputs_give_finite_kl_and_gradients(base, beta):
    raw = torch.tensor(list(itertools.product([-1e4, 0.0, 1e4], EXTREMES, [-1e4, 0.0, 1e4], EXTREMES)))
    raw.requires_grad_()
    q = DiagonalGaussian(raw[:, 0], std_from_raw(raw[:, 1], base, beta))
    p = DiagonalGaussian(raw[:, 2], std_from_raw(raw[:, 3], base, beta))
    kl = q.kl(p)
    assert kl.isfinite().all()
    kl.mean().backward()
    bad = ~raw.grad.isfinite().all(dim=1)
    assert not bad.any(), f"gradient not finite at {raw[bad][:5].tolist()}"
