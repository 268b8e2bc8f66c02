"""Choices of z: rounded codes and what they cost, and masks that stay with a model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hvae_codec.model.checkpoint import load_model
from hvae_codec.model.choices import RoundedPosterior, gaussian_noise, kept_of
from hvae_codec.model.gaussian import DiagonalGaussian
from hvae_codec.model.hvae import HVAE
from hvae_codec.model.top_down import STEP_RATE
from hvae_codec.prune.kl_stats import kl_stats


@pytest.fixture(scope="module")
def coded(tiny_model) -> HVAE:
    """`tiny_model` with steps of 0.25 for codes."""
    model = HVAE(replace(tiny_model.config, learned_steps=True))
    missing, _ = model.load_state_dict(tiny_model.state_dict(), strict=False)
    assert all(name.endswith("log_step") for name in missing)
    with torch.no_grad():
        for block in model.top_down.blocks:
            block.log_step.fill_(np.log(0.25) / STEP_RATE)
    return model


def some(tiny_model, share: float = 0.5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(group.variates, 1, 1, generator=generator) < share for group in tiny_model.config.groups]


@pytest.mark.parametrize("mean", [0.0, 3.0, -40.0])
@pytest.mark.parametrize("width", [1e-5, 0.01, 1.0, 30.0])
def test_log_mass_is_that_of_the_bin(mean: float, width: float):
    p = DiagonalGaussian(torch.full((1,), mean), torch.full((1,), 2.0))
    edges = torch.tensor([-width / 2, width / 2], dtype=torch.float64)
    # Both edges where the distribution function is small, as 1 - 1 would be nothing.
    low, high = (torch.special.log_ndtr((edge - abs(mean)) / 2.0) for edge in edges)
    expected = high + torch.log(-torch.expm1(low - high))
    found = p.log_mass(torch.zeros(1), torch.tensor(width)).double()
    torch.testing.assert_close(found, expected[None], rtol=2e-3, atol=1e-6)


def test_log_masses_of_all_bins_sum_to_one():
    p = DiagonalGaussian(torch.tensor(0.3), torch.tensor(1.7))
    codes = torch.arange(-200, 201) * 0.1
    assert p.log_mass(codes, torch.tensor(0.1)).exp().sum().item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("std", [1e-4, 4e-4, 0.03, 3.0])
def test_no_length_of_a_code_is_too_short(std: float):
    """Masses sum to at most 1, also if a bin is wider than the distribution."""
    p = DiagonalGaussian(torch.tensor(0.4), torch.tensor(std))
    masses = p.log_mass(torch.arange(-3.0, 4.0), torch.tensor(1.0)).exp()
    assert masses.sum().item() <= 1.0 + 1e-5
    far = p.log_mass(torch.tensor(40.0), torch.tensor(1.0)).item()
    assert far == pytest.approx(-0.5 * (39.1 / std) ** 2, rel=0.02, abs=5)


def test_log_mass_has_finite_gradients():
    mean, std, width = (torch.tensor(value, requires_grad=True) for value in (0.0, 1.0, 0.5))
    for z in (0.0, 1.0, 50.0, 1e5):
        DiagonalGaussian(mean, std).log_mass(torch.tensor(z), width).backward()
    assert all(torch.isfinite(x.grad) for x in (mean, std, width))


def test_codes_are_multiples_of_their_steps(coded, photo_patches):
    images = torch.from_numpy(photo_patches[:3])
    seen = []

    def record(group):
        seen.append(choose(group))
        return seen[-1]

    choose = RoundedPosterior()
    coded.top_down(coded.activations(images), record, 3)
    for z in seen:
        torch.testing.assert_close(z / 0.25, (z / 0.25).round(), rtol=0, atol=1e-4)
    assert choose.kl.shape == (len(coded.config.groups), 3)
    assert (choose.kl >= 0).all()


def test_the_bound_of_codes_needs_no_noise_and_is_above_that_of_finer_ones(coded, photo_patches):
    images = torch.from_numpy(photo_patches[:3])
    one, other = (coded.elbo(images, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert torch.equal(one.nelbo, other.nelbo)
    assert (one.rate > 0).all()


def test_rounding_lets_gradients_through(coded, photo_patches):
    terms = coded(torch.from_numpy(photo_patches[:3]), gaussian_noise())
    (terms.nll.sum() + terms.kl.sum()).backward()
    last = coded.top_down.blocks[-1]
    assert last.log_step.grad.abs().sum() > 0
    assert last.posterior_conv.weight.grad.abs().sum() > 0
    coded.zero_grad()


def test_statistics_of_codes_are_their_lengths_and_steps(coded, photo_patches):
    stats = kl_stats(coded, photo_patches[:3])
    lengths = coded.choose_posterior(gaussian_noise())
    with torch.no_grad():
        coded.top_down(coded.activations(torch.from_numpy(photo_patches[:3])), lengths, 3)
    np.testing.assert_allclose(stats.per_group, lengths.kl.mean(dim=1).numpy() / np.log(2.0), rtol=1e-4)
    assert all(np.float32(std) == np.float32(0.25) for group in stats.posterior_std for std in group)


def test_a_mask_that_stays_gives_the_bound_of_a_mask_that_is_given(tiny_run, tiny_model, photo_patches):
    pruned, mask, images = load_model(tiny_run), some(tiny_model), torch.from_numpy(photo_patches[:3])
    pruned.prune_to(mask)
    ours = pruned.elbo(images, generator=torch.Generator().manual_seed(0))
    given = tiny_model.elbo(images, mask=mask, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours.nelbo, given.nelbo)
    stats = kl_stats(pruned, photo_patches[:3])
    for keep, kl in zip(mask, stats.kl_bits, strict=True):
        assert ((kl.sum(axis=(1, 2)) > 0) == keep.flatten().numpy()).all()


def test_reconstruction_of_a_pruned_model_has_the_priors_mean(tiny_run, tiny_model, photo_patches):
    pruned, mask, images = load_model(tiny_run), some(tiny_model), torch.from_numpy(photo_patches[:3])
    pruned.prune_to(mask)

    def by_hand(group):
        return torch.where(mask[group.index], group.posterior().mean, group.prior_mean)

    with torch.no_grad():
        output = tiny_model.top_down(tiny_model.activations(images), by_hand, 3)
    expected = tiny_model.likelihood.to_pixels(tiny_model.likelihood.mean(output))
    assert torch.equal(pruned.reconstruct(images), expected)


def test_rounded_codes_of_a_part_leave_the_rest_at_the_mean(coded, photo_patches):
    mask, images = some(coded), torch.from_numpy(photo_patches[:3])
    choose, means = RoundedPosterior(kept_of(mask, "cpu")), []

    def record(group):
        z = choose(group)
        means.append((z, group.prior_mean))
        return z

    with torch.no_grad():
        coded.top_down(coded.activations(images), record, 3)
    for keep, (z, mean) in zip(mask, means, strict=True):
        assert torch.equal(z[:, ~keep.flatten()], mean[:, ~keep.flatten()])
