from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from hvae_codec.config import ModelConfig, StageConfig
from hvae_codec.model.likelihood import Bernoulli, LogisticMixture, make_likelihood

M = 3


def model_config(**options) -> ModelConfig:
    return ModelConfig(**{"resolution": 8, "stages": (StageConfig(8, 4, 2),), "mixtures": M, **options})


def levels(bits: int) -> torch.Tensor:
    return torch.arange(0, 256, 2 ** (8 - bits), dtype=torch.uint8)


def random_output(likelihood: LogisticMixture, scale: float = 0.05) -> torch.Tensor:
    """Output [1, out_channels, 1, 1] whose means are in the image and whose stds lie around `scale`."""
    output = torch.randn(1, likelihood.out_channels, 1, 1)
    logits, means, _, coefficients = likelihood.split(output)
    raw = scale * torch.rand_like(means).add(0.5)
    means = torch.rand_like(raw) * 1.8 - 0.9
    likelihood.join([logits, means, torch.log(torch.expm1(raw * 0.6931472)) / 0.6931472, coefficients], output)
    return output


# --- an independent reference in float64: the logistic's distribution function, one pixel at a time


def reference_pixel(p: dict[str, np.ndarray], x: np.ndarray, half: float, highest: float) -> float:
    """log probability of colours `x` [C]; weights [M], means and stds [C, M], coefficients [C, C, M]."""
    total = 0.0
    for m, weight in enumerate(p["weights"]):
        product = weight
        for c in range(len(x)):
            mean = p["means"][c, m] + sum(p["coefficients"][c, j, m] * x[j] for j in range(c))
            upper = 1.0 if math.isclose(x[c], highest) else logistic_cdf((x[c] + half - mean) / p["stds"][c, m])
            lower = 0.0 if x[c] == -1.0 else logistic_cdf((x[c] - half - mean) / p["stds"][c, m])
            product *= upper - lower
        total += product
    return math.log(total)


def logistic_cdf(t: float) -> float:
    return 1 / (1 + math.exp(-t)) if t > 0 else math.exp(t) / (1 + math.exp(t))


def reference_parameters(output: torch.Tensor, channels: int) -> dict[str, np.ndarray]:
    """Read the published channel order: logits, then for each colour M means, M raw scales, M coefficients."""
    o = output[0, :, 0, 0].double().numpy()
    logits, rows = o[:M], o[M:].reshape(-1, M)
    weights = np.exp(logits - logits.max())
    if channels == 1:
        means, raw, coefficients = rows[[0]], rows[[1]], np.zeros((1, 1, M))
    else:
        assert channels == 3
        means, raw = rows[[0, 3, 6]], rows[[1, 4, 7]]
        coefficients = np.zeros((3, 3, M))
        coefficients[1, 0], coefficients[2, 0], coefficients[2, 1] = np.tanh(rows[[2, 5, 8]])
    stds = np.log1p(np.exp(0.6931472 * raw)) / 0.6931472
    return {"weights": weights / weights.sum(), "means": means, "stds": stds, "coefficients": coefficients}


@pytest.mark.parametrize("bits", [8, 5, 1])
@pytest.mark.parametrize("channels", [1, 3])
def test_nll_is_the_reference(bits, channels):
    likelihood = LogisticMixture(model_config(channels=channels, bits=bits))
    generator = np.random.default_rng(0)
    step = 2 ** (8 - bits)
    for pixels in [np.zeros(channels), np.full(channels, 255), *generator.integers(0, 256, (20, channels))]:
        output = random_output(likelihood, scale=0.3)
        floored = pixels.astype(int) // step * step
        x = (floored - 127.5) / 127.5
        parameters = reference_parameters(output, channels)
        expected = -reference_pixel(parameters, x, step / 255, (256 - step - 127.5) / 127.5)
        images = torch.from_numpy(pixels.astype(np.uint8))[None, :, None, None]
        assert likelihood.nll(output, images).item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


# --- probabilities


def probabilities(likelihood: LogisticMixture, output: torch.Tensor, colour: int, given_colours: torch.Tensor):
    """P(colour c = each level | earlier colours), in float64."""
    values = levels(likelihood.config.bits)
    images = given_colours.view(1, -1, 1, 1).repeat(len(values), 1, 1, 1)
    images[:, colour, 0, 0] = values
    p = likelihood.parameters(output.expand(len(values), -1, -1, -1))
    p = p._replace(means=p.means.double(), stds=p.stds.double(), coefficients=p.coefficients.double())
    cut = 8 - likelihood.config.bits
    x = (((images >> cut) << cut).double() - 127.5) / 127.5
    mass = likelihood._log_mass(x.unsqueeze(2), likelihood._shifted_means(p, x), p.stds)[..., 0, 0]
    earlier = mass[:, :colour].sum(dim=1) + p.logits.double().log_softmax(dim=1)[..., 0, 0]
    joint = torch.logsumexp(earlier + mass[:, colour], dim=1).exp()
    return joint / torch.logsumexp(earlier, dim=1).exp()


@pytest.mark.parametrize("bits", [8, 5, 1])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("scale", [3e-3, 0.1, 3.0])
def test_probabilities_of_all_levels_sum_to_1(bits, channels, scale):
    likelihood = LogisticMixture(model_config(channels=channels, bits=bits))
    output = random_output(likelihood, scale)
    for colour in range(channels):
        others = torch.randint(0, 256, (channels,), dtype=torch.uint8)
        total = probabilities(likelihood, output, colour, others).sum().item()
        assert total == pytest.approx(1.0, abs=1e-6)


def test_whole_joint_distribution_sums_to_1_at_1_bit():
    likelihood = LogisticMixture(model_config(channels=4, bits=1))
    output = random_output(likelihood, scale=0.5)
    images = torch.tensor(list(itertools.product([0, 128], repeat=4)), dtype=torch.uint8)[:, :, None, None]
    nll = likelihood.nll(output.expand(len(images), -1, -1, -1), images)
    assert (-nll).exp().sum().item() == pytest.approx(1.0, abs=1e-5)


def one_logistic(bins: str, bits: int, mean: float, std: float) -> torch.Tensor:
    """log mass of all levels under one logistic, in float64."""
    likelihood = LogisticMixture(model_config(channels=1, bits=bits, bins=bins))
    x = (levels(bits).double() - 127.5) / 127.5
    log_mass = likelihood._exact_log_mass if bins == "exact" else likelihood._published_log_mass
    return log_mass(x, torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64))


@given(st.floats(-1.5, 1.5), st.floats(-10, 3).map(math.exp), st.sampled_from(range(1, 9)))
def test_masses_of_one_logistic_sum_to_1(mean, std, bits):
    assert one_logistic("exact", bits, mean, std).exp().sum().item() == pytest.approx(1.0, abs=1e-9)


@given(st.floats(-1, 1), st.floats(-6, 1).map(math.exp))
def test_published_bins_are_exact_at_8_bits(mean, std):
    exact, published = (one_logistic(bins, 8, mean, std) for bins in ("exact", "published"))
    likely = exact.exp() > 1.1e-5
    assert likely.any()
    torch.testing.assert_close(published[likely], exact[likely], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("std", [0.003, 0.03, 0.1])
def test_published_bins_overlap_at_5_bits(std):
    """The published bins are 2/31 wide and 8/127.5 apart: probabilities sum to 1.028, not to 1.

    A mean on a level and one between two differ where the scale is far below a bin's width; the average counts.
    """
    means = np.linspace(-0.4, -0.4 + 8 / 127.5, 200, endpoint=False)
    sums = [one_logistic("published", 5, mean, std).exp().sum().item() for mean in means]
    assert np.mean(sums) == pytest.approx((2 / 31) / (8 / 127.5), abs=2e-3)
    assert np.mean(sums) == pytest.approx(1.028, abs=2e-3)


# --- gradients and extremes


@pytest.mark.parametrize("bits", [8, 5])
@pytest.mark.parametrize("bins", ["exact", "published"])
def test_log_mass_gradients(bits, bins):
    likelihood = LogisticMixture(model_config(channels=1, bits=bits, bins=bins))
    x = (levels(bits)[:: 2 ** (bits - 3)].double() - 127.5) / 127.5
    x = torch.cat([x, torch.tensor([likelihood.highest], dtype=torch.float64)])
    mean = torch.full_like(x, 0.1, requires_grad=True)
    raw = torch.full_like(x, -2.0, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m, r: likelihood._log_mass(x, m, r.exp()), (mean, raw))


@pytest.mark.parametrize("options", [{}, {"channels": 1}, {"bits": 5, "output_scale": "logstd", "output_beta": 1.0}])
def test_gradcheck_of_the_whole_nll(options):
    likelihood = LogisticMixture(model_config(**options))
    output = random_output(likelihood, scale=0.4).double().requires_grad_()
    images = torch.randint(0, 256, (1, likelihood.config.channels, 1, 1), dtype=torch.uint8)
    assert torch.autograd.gradcheck(lambda o: likelihood.nll(o, images), output)


@pytest.mark.parametrize("bins", ["exact", "published"])
@pytest.mark.parametrize("output_scale", ["std", "logstd"])
@pytest.mark.parametrize("floor", [-250.0, -7.0])
@pytest.mark.parametrize("bits", [8, 5])
def test_extreme_outputs_give_finite_nll_and_gradients(bins, output_scale, floor, bits):
    options = {"bins": bins, "output_scale": output_scale, "min_output_logscale": floor, "bits": bits}
    likelihood = LogisticMixture(model_config(channels=3, mixtures=M, **options))
    choices = torch.tensor([-1e4, -50.0, -1.0, 0.0, 1.0, 50.0, 1e4])
    output = choices[torch.randint(0, len(choices), (500, likelihood.out_channels, 1, 1))].requires_grad_()
    images = torch.tensor([0, 1, 127, 248, 255], dtype=torch.uint8)[torch.randint(0, 5, (500, 3, 1, 1))]
    nll = likelihood.nll(output, images)
    assert nll.isfinite().all()
    nll.mean().backward()
    assert output.grad.isfinite().all()
    for x in (likelihood.mean(output), likelihood.sample(output)):
        assert x.isfinite().all()
        assert x.abs().max() <= 1


@pytest.mark.parametrize("output_scale", ["std", "logstd"])
def test_scales_do_not_go_below_the_floor(output_scale):
    config = model_config(channels=1, output_scale=output_scale, output_beta=1.0, min_output_logscale=-7.0)
    likelihood = LogisticMixture(config)
    stds = likelihood.parameters(torch.full((1, likelihood.out_channels, 1, 1), -1e4)).stds
    torch.testing.assert_close(stds, torch.full_like(stds, math.exp(-7.0)))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_the_parts_of_an_output_join_again(channels):
    likelihood = LogisticMixture(model_config(channels=channels))
    output = torch.randn(2, likelihood.out_channels, 3, 3)
    parts = likelihood.split(output)
    assert [part.shape[1] for part in parts] == [M, channels, channels, channels * (channels - 1) // 2]
    assert all(part.is_contiguous() for part in parts)
    joined = torch.full_like(output, torch.nan)
    likelihood.join(parts, joined)
    assert torch.equal(joined, output)


# --- mean and samples


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_mean_is_the_average_of_samples(channels):
    likelihood = LogisticMixture(model_config(channels=channels))
    output = random_output(likelihood, scale=0.02)
    logits, means, scales, coefficients = likelihood.split(output)
    # Away from the clamp at the ends of the range.
    likelihood.join([logits, means * 0.3, scales, coefficients * 0.3], output)
    draws = likelihood.sample(output.expand(40_000, -1, -1, -1), torch.Generator().manual_seed(0))
    assert draws.shape == (40_000, channels, 1, 1)
    error = draws.std(dim=0) / math.sqrt(len(draws))
    assert ((draws.mean(dim=0) - likelihood.mean(output)[0]).abs() < 4 * error + 1e-3).all()


def test_temperature_0_samples_the_mean_of_one_component():
    likelihood = LogisticMixture(model_config(channels=1, mixtures=1))
    output = torch.tensor([0.0, 0.25, -1.0])[None, :, None, None]
    assert likelihood.sample(output, temperature=1e-6).item() == pytest.approx(0.25, abs=1e-4)


def test_samples_follow_the_generator():
    likelihood = LogisticMixture(model_config())
    output = random_output(likelihood).expand(5, -1, -1, -1)
    first, again, other = (likelihood.sample(output, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# --- images and channels


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_out_channels(channels):
    per_mixture = 1 + 2 * channels + channels * (channels - 1) // 2
    assert LogisticMixture(model_config(channels=channels)).out_channels == M * per_mixture


def test_out_channels_of_colour_images_are_the_published_ones():
    assert LogisticMixture(model_config(channels=3)).out_channels == M * (3 * 3 + 1)


@pytest.mark.parametrize("bits", range(1, 9))
def test_input_is_the_pixel_floored_to_its_level(bits):
    likelihood = LogisticMixture(model_config(channels=1, bits=bits))
    pixels = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1)
    step = 2 ** (8 - bits)
    x = likelihood.to_input(pixels)
    torch.testing.assert_close(x, (pixels // step * step).float() / 127.5 - 1.0)
    assert torch.equal(likelihood.to_pixels(x), pixels // step * step)


def test_what_the_network_reads_may_be_scaled_and_cut_otherwise():
    config = model_config(channels=1, bits=5, input_bits=7, input_mean=100.0, input_std=50.0)
    likelihood, pixels = LogisticMixture(config), torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1)
    torch.testing.assert_close(likelihood.to_input(pixels), ((pixels // 2 * 2).float() - 100.0) / 50.0)
    torch.testing.assert_close(likelihood.to_target(pixels), (pixels // 8 * 8).float() / 127.5 - 1.0)


def test_bernoulli_is_the_closed_form_on_the_central_28():
    likelihood = Bernoulli(ModelConfig(32, (StageConfig(32, 4, 2),), channels=1, output="bernoulli"))
    output, images = torch.randn(2, 1, 32, 32), torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8)
    assert likelihood.out_channels == 1
    p = torch.sigmoid(output[:, :, 2:30, 2:30].double())
    expected = -torch.where(images >= 128, p.log(), (1 - p).log()).sum(dim=(1, 2, 3))
    torch.testing.assert_close(likelihood.nll(output, images).double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(likelihood.mean(output).double(), p, rtol=1e-5, atol=1e-6)
    output[:, :, :2] = torch.nan  # what is outside the centre does not matter
    assert likelihood.nll(output, images).isfinite().all()


def test_bernoulli_input_is_binary_from_128_on_and_padded():
    likelihood = Bernoulli(ModelConfig(32, (StageConfig(32, 4, 2),), channels=1, output="bernoulli"))
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)[..., :16]
    images = F.pad(images, (6, 6, 6, 6))
    x = likelihood.to_input(images)
    assert x.shape == (1, 1, 32, 32)
    assert x.unique().tolist() == [0, 1]
    assert x.sum() == 128
    torch.testing.assert_close(x[:, :, 2:30, 2:30], (images >= 128).float())
    assert torch.equal(likelihood.to_pixels(x), (x * 255).to(torch.uint8))


def test_bernoulli_mean_is_the_average_of_samples():
    likelihood = Bernoulli(ModelConfig(32, (StageConfig(32, 4, 2),), channels=1, output="bernoulli"))
    output = torch.randn(1, 1, 32, 32)
    draws = likelihood.sample(output.expand(2000, -1, -1, -1), torch.Generator().manual_seed(0))
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    assert (draws.mean(dim=0) - likelihood.mean(output)[0]).abs().max() < 0.06


def test_make_likelihood():
    assert isinstance(make_likelihood(model_config()), LogisticMixture)
    assert isinstance(make_likelihood(model_config(channels=1, output="bernoulli")), Bernoulli)
