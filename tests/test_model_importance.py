"""The importance-weighted bound: known answers, one sample, order in K, memory."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hvae_codec.config import ModelConfig, StageConfig
from hvae_codec.errors import DataError, UsageError
from hvae_codec.model.gaussian import DiagonalGaussian
from hvae_codec.model.hvae import HVAE
from hvae_codec.model.image_noise import ImageNoise
from hvae_codec.model.importance import importance_bound, log_density_ratio, posterior_estimates
from hvae_codec.model.likelihood import make_likelihood


def normal(mean: torch.Tensor, variance: float) -> DiagonalGaussian:
    return DiagonalGaussian(mean, torch.full_like(mean, math.sqrt(variance)))


class LinearGaussian:
    """z1 ~ N(0, 1), z2 ~ N(z1, 1), x ~ N(z2, 1): x is N(0, 3), and its posterior is known.

    `error` is added to the means of the posterior, which is exact without it.
    """

    device = torch.device("cpu")
    config = SimpleNamespace(learned_steps=False)
    keep = None  # nothing was pruned

    def __init__(self, error: float = 0.0) -> None:
        self.error = error
        self.likelihood = SimpleNamespace(nll=self._nll)

    def activations(self, images):
        return [images]

    def _nll(self, output, images):
        return (0.5 * (images - output).square() + 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)

    def top_down(self, activations, choose, batch):
        x = activations[0]
        prior = normal(torch.zeros_like(x), 1.0)
        z1 = choose(SimpleNamespace(prior=prior, posterior=lambda: normal(x / 3 + self.error, 2 / 3)))
        second = normal((z1 + x) / 2 + self.error, 1 / 2)
        return choose(SimpleNamespace(prior=normal(z1, 1.0), posterior=lambda: second))


@pytest.fixture
def x():
    return torch.linspace(-3, 3, 7, dtype=torch.float64).view(7, 1, 1, 1)


def exact(x):
    return (x.square() / 6 + 0.5 * math.log(2 * math.pi * 3)).flatten()


@pytest.mark.parametrize("samples", [1, 2, 7])
def test_the_exact_posterior_gives_log_p_of_x_from_any_samples(x, samples):
    bound = importance_bound(LinearGaussian(), x, ImageNoise(0, range(7)), samples)
    torch.testing.assert_close(bound, exact(x), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_many_samples_of_a_wrong_posterior_come_near_log_p_of_x(x):
    bounds = [importance_bound(LinearGaussian(0.4), x, ImageNoise(0, range(7)), k) for k in (1, 3000)]
    assert (bounds[0] - exact(x)).abs().max() > 0.3
    torch.testing.assert_close(bounds[1], exact(x), rtol=0, atol=0.05)


def test_one_sample_is_an_unbiased_estimate_of_the_nelbo(x):
    """E log w = ELBO, which has a closed form here: -log p(x) and the KL of the wrong posterior from the exact one."""
    many = x[3:4].expand(20_000, 1, 1, 1)
    estimates = importance_bound(LinearGaussian(0.4), many, ImageNoise(0, range(len(many))), 1)
    # q(z1) is off by e, q(z2 | z1) by e: KL = e² / (2 · 2/3) + e² / (2 · 1/2).
    nelbo = exact(x)[3] + 0.16 / (4 / 3) + 0.16
    assert abs(estimates.mean() - nelbo) < 4 * estimates.std() / math.sqrt(len(many))


def one_pixel_model() -> HVAE:
    """A hierarchical VAE of one grey pixel with one latent dimension: log p(x) is an integral over a line."""
    config = ModelConfig(1, (StageConfig(1, width=8, variates=1, kernel=1),), channels=1, mixtures=2)
    model = HVAE(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(1.5 * torch.randn(parameter.shape))
    return model


@torch.no_grad()
def log_p(model: HVAE, pixels: torch.Tensor) -> torch.Tensor:
    """log p(x) of pixels [B, 1, 1, 1] by quadrature over z."""
    u = torch.linspace(-7, 7, 2001)
    output = model.top_down(None, lambda group: group.prior.sample(u.view(-1, 1, 1, 1)), len(u))
    log_weight = -0.5 * u.double().square() - 0.5 * math.log(2 * math.pi) + math.log(14 / 2000)
    nll = torch.stack([model.likelihood.nll(output, pixel.expand(len(u), 1, 1, 1)) for pixel in pixels])
    return torch.logsumexp(log_weight - nll.double(), dim=1)


@pytest.mark.slow
def test_the_model_of_one_pixel():
    """Against quadrature: the bound lies above -log p(x), falls with K and comes near it."""
    model = one_pixel_model()
    pixels = torch.arange(0, 256, 10, dtype=torch.uint8).view(-1, 1, 1, 1)
    truth = -log_p(model, pixels)
    assert torch.logsumexp(log_p(model, torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1)), 0) == pytest.approx(
        0, abs=1e-3
    )
    nelbo, few, many = (importance_bound(model, pixels, ImageNoise(1, range(26)), k) for k in (1, 10, 500))
    assert nelbo.mean() > few.mean() > many.mean()
    assert (nelbo - truth).mean() > 0.1
    assert (many - truth).mean().item() == pytest.approx(0, abs=0.05)


def estimates(model, patches, samples=1, seed=0, images=None, **options):
    pixels = torch.from_numpy(patches)
    noise = ImageNoise(seed, range(len(patches)) if images is None else images)
    return posterior_estimates(model, pixels, model.activations(pixels), noise, samples, **options)


def test_one_sample_is_the_elbo_estimate(tiny_model, photo_patches):
    """At K = 1: the distortion of `elbo` on the same noise, and the log-density ratio in place of the KL."""
    found = estimates(tiny_model, photo_patches)
    noise = ImageNoise(0, range(24))
    terms = tiny_model(torch.from_numpy(photo_patches), noise)
    torch.testing.assert_close(found.nll[0], terms.nll.double())
    torch.testing.assert_close(found.kl, terms.kl.double(), rtol=1e-4, atol=1e-3)

    noise, ratio = ImageNoise(0, range(24)), 0.0

    def choose(group):
        nonlocal ratio
        q, p = group.posterior(), group.prior
        z = q.sample(noise(group)).double()
        log_p, log_q = (torch.distributions.Normal(d.mean.double(), d.std.double()).log_prob(z) for d in (p, q))
        ratio = ratio + (log_p - log_q).flatten(1).sum(1)
        return z.float()

    pixels = torch.from_numpy(photo_patches)
    output = tiny_model.top_down(tiny_model.activations(pixels), choose, 24)
    by_hand = tiny_model.likelihood.nll(output, pixels) - ratio
    torch.testing.assert_close(found.bound[0], by_hand, rtol=1e-5, atol=1e-2)


def test_the_bound_is_never_above_the_average_of_its_samples(tiny_model, photo_patches):
    """Jensen's inequality, image by image: with the samples of K = 8 taken one at a time."""
    noise = ImageNoise(0, range(24))
    pixels = torch.from_numpy(photo_patches)
    activations = tiny_model.activations(pixels)
    singles = torch.stack([posterior_estimates(tiny_model, pixels, activations, noise).bound[0] for _ in range(8)])
    bound = estimates(tiny_model, photo_patches, 8).bound[0]
    assert (bound < singles.mean(dim=0)).all()
    torch.testing.assert_close(bound, math.log(8) - torch.logsumexp(-singles, dim=0), rtol=1e-9, atol=0)
    found = estimates(tiny_model, photo_patches, 8)
    nelbo = found.kl.sum(dim=0) + found.nll[0]
    difference = bound - nelbo
    assert difference.mean() < 2 * difference.std() / math.sqrt(24)


def test_the_ratio_averages_to_the_kl():
    q = DiagonalGaussian(torch.tensor([[1e3, -0.5]]).view(1, 2, 1, 1), torch.tensor([[1e-3, 0.3]]).view(1, 2, 1, 1))
    p = DiagonalGaussian(q.mean + torch.tensor([1e-3, 0.4]).view(1, 2, 1, 1), q.std * 2)
    noise = torch.randn(100_000, 2, 1, 1)
    z = q.mean.double() + q.std.double() * noise
    ratio = log_density_ratio(q, p, noise, z)
    torch.testing.assert_close(-ratio.mean(dim=0, keepdim=True).float(), q.kl(p), rtol=0.02, atol=0.01)


def test_several_likelihoods_read_the_same_samples(tiny_model, photo_patches):
    published = make_likelihood(dataclasses.replace(tiny_model.config, bins="published"))
    both = estimates(tiny_model, photo_patches, 2, likelihoods=[tiny_model.likelihood, published])
    alone = estimates(tiny_model, photo_patches, 2, likelihoods=[published])
    assert both.nll.shape == both.bound.shape == (2, 24)
    assert (both.nll[1] == alone.nll[0]).all()
    assert (both.bound[0] == estimates(tiny_model, photo_patches, 2).bound[0]).all()


def test_an_images_noise_does_not_depend_on_its_batch(tiny_model, photo_patches):
    whole = estimates(tiny_model, photo_patches, 3)
    part = estimates(tiny_model, photo_patches[5:9], 3, images=range(5, 9))
    for a, b in zip(whole, part, strict=True):
        torch.testing.assert_close(a[:, 5:9], b, rtol=1e-4, atol=1e-3)
    assert not torch.equal(whole.nll, estimates(tiny_model, photo_patches, 3, seed=1).nll)


@pytest.mark.slow
def test_nothing_is_kept_of_a_sample(tiny_model, photo_patches):
    """The outputs of earlier passes are gone when a later one runs."""
    import gc
    import weakref

    outputs = []
    own = tiny_model.likelihood

    def nll(output, images):
        outputs.append(weakref.ref(output))
        return own.nll(output, images)

    alive = []

    def count(done):
        gc.collect()
        alive.append(sum(output() is not None for output in outputs))

    estimates(tiny_model, photo_patches[:2], 5, likelihoods=[SimpleNamespace(nll=nll)], on_sample=count)
    assert alive == [1] * 5


def test_wrong_input(tiny_model, photo_patches):
    with pytest.raises(UsageError, match="posterior samples is 0"):
        estimates(tiny_model, photo_patches, 0)
    with pytest.raises(DataError, match="this model takes"):
        importance_bound(tiny_model, torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ImageNoise(0, range(1)), 1)


def test_noise_of_images_is_different_and_normal():
    group = SimpleNamespace(prior=normal(torch.zeros(64, 4, 8, 8), 1.0))
    drawn = ImageNoise(0, range(64))(group)
    assert len(np.unique(drawn[:, 0, 0, 0])) == 64
    assert drawn.mean().item() == pytest.approx(0, abs=0.03)
    assert drawn.std().item() == pytest.approx(1, abs=0.03)
    # (seed, image) is a pair: seed 1's images are not seed 0's, moved by one.
    other = ImageNoise(1, range(64))(group)
    assert not set(drawn[:, 0, 0, 0].tolist()) & set(other[:, 0, 0, 0].tolist())
    last = SimpleNamespace(prior=normal(torch.zeros(64, 4, 8, 8).to(memory_format=torch.channels_last), 1.0))
    again = ImageNoise(0, range(64))(last)
    assert torch.equal(again, drawn)
    assert again.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("threads", [1, 3])
def test_noise_goes_on_from_group_to_group_however_many_threads_draw(threads: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    noise, generators = ImageNoise(5, range(7, 17)), [np.random.default_rng((5, image)) for image in range(7, 17)]
    for shape in ((5, 1, 1), (16, 17, 17), (3, 2, 2), (40, 16, 16)):
        drawn = noise(SimpleNamespace(prior=normal(torch.zeros(10, *shape), 1.0)))
        expected = np.stack([generator.standard_normal(shape, dtype=np.float32) for generator in generators])
        np.testing.assert_array_equal(drawn, expected)
