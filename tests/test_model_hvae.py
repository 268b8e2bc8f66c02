from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from hvae_codec.config import ModelConfig, StageConfig
from hvae_codec.errors import DataError
from hvae_codec.model.choices import gaussian_noise, normal_like, prior_sample
from hvae_codec.model.hvae import HVAE
from hvae_codec.model.likelihood import Bernoulli


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images(photo_patches) -> torch.Tensor:
    return torch.from_numpy(photo_patches[:4])


# --- elbo


def test_elbo_is_per_image_in_bits_per_dimension(tiny_model, images):
    elbo = tiny_model.elbo(images, generator=generator())
    terms = tiny_model(images, gaussian_noise(generator()))
    assert elbo.rate.shape == elbo.distortion.shape == elbo.nelbo.shape == (4,)
    assert terms.kl.shape == (len(tiny_model.config.groups), 4)
    nats = math.log(2) * 3 * 16 * 16
    torch.testing.assert_close(elbo.distortion, terms.nll / nats)
    torch.testing.assert_close(elbo.rate, terms.kl.sum(dim=0) / nats)
    torch.testing.assert_close(elbo.nelbo, elbo.rate + elbo.distortion)
    assert (elbo.rate > 0).all()
    assert (terms.kl >= 0).all()
    assert (elbo.nelbo < 9).all()  # trained for a moment only, but raw pixels are 8


def test_an_untrained_output_of_one_wide_logistic_costs_about_8_bits(images):
    """A closed relation: under one logistic of scale 127.5 levels a bin's mass is near 1 / (4 * 127.5)."""
    config = ModelConfig(16, (StageConfig(16, 8, 2),), mixtures=1)
    model = HVAE(config)
    with torch.no_grad():
        model.top_down.output_conv.weight.zero_()
        bias = model.top_down.output_conv.bias.zero_()
        bias[[2, 5, 8]] = math.log(math.expm1(0.6931472)) / 0.6931472  # std 1: 127.5 levels
    x = (images.double() - 127.5) / 127.5
    upper, lower = torch.sigmoid(x + 1 / 255), torch.sigmoid(x - 1 / 255)
    mass = torch.where(images == 255, 1.0, upper) - torch.where(images == 0, 0.0, lower)
    expected = -torch.log2(mass).mean(dim=(1, 2, 3))
    torch.testing.assert_close(model.elbo(images).distortion.double(), expected, rtol=1e-5, atol=0)


def test_the_same_generator_gives_the_same_numbers(tiny_model, images):
    first, again, other = (tiny_model.elbo(images, generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.nelbo, again.nelbo)
    assert not torch.equal(first.nelbo, other.nelbo)


def masks(config: ModelConfig, keep: bool) -> list[torch.Tensor]:
    return [torch.full((group.variates, 1, 1), keep) for group in config.groups]


def test_a_mask_that_keeps_nothing_has_rate_0(tiny_model, images):
    elbo = tiny_model.elbo(images, mask=masks(tiny_model.config, False), generator=generator())
    assert (elbo.rate == 0).all()
    output = tiny_model.top_down(None, prior_sample(gaussian_noise(generator())), 4)
    expected = tiny_model.likelihood.nll(output, images) / tiny_model.nats_per_bit_dim
    torch.testing.assert_close(elbo.distortion, expected)


def test_a_mask_that_keeps_all_changes_nothing(tiny_model, images):
    whole = tiny_model.elbo(images, generator=generator())
    masked = tiny_model.elbo(images, mask=masks(tiny_model.config, True), generator=generator())
    assert torch.equal(whole.nelbo, masked.nelbo)


def test_pruned_variates_count_no_kl(tiny_model, images):
    mask = masks(tiny_model.config, False)
    mask[0][2] = True
    kl = tiny_model(images, gaussian_noise(generator()), mask).kl
    assert (kl[0] > 0).all()
    assert (kl[1:] == 0).all()


# --- invariances


def test_channels_last_gives_the_same_numbers(tiny_config, tiny_model, images):
    plain = HVAE(tiny_config.model)
    plain.load_state_dict(tiny_model.state_dict())
    last = HVAE(tiny_config.model).to(memory_format=torch.channels_last)
    last.load_state_dict(tiny_model.state_dict())
    a, b = plain.elbo(images, generator=generator()), last.elbo(images, generator=generator())
    torch.testing.assert_close(a.rate, b.rate, rtol=1e-5, atol=0)
    torch.testing.assert_close(a.distortion, b.distortion, rtol=1e-5, atol=0)


def test_noise_does_not_depend_on_the_memory_format():
    plain = torch.zeros(2, 3, 4, 4)
    last = plain.to(memory_format=torch.channels_last)
    torch.testing.assert_close(normal_like(plain, generator()), normal_like(last, generator()), rtol=0, atol=0)
    assert normal_like(last, generator()).is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch(tiny_model, images):
    def output(batch: torch.Tensor) -> torch.Tensor:
        return tiny_model.top_down(tiny_model.activations(batch), lambda group: group.posterior().mean, len(batch))

    whole = output(images)
    for i in range(4):
        torch.testing.assert_close(output(images[i : i + 1])[0], whole[i], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output(images.flip(0)), whole.flip(0), rtol=1e-5, atol=1e-5)


def test_later_groups_know_the_earlier_z(tiny_model, images):
    """The prior of group i depends on z of the groups before it, not on those after."""
    means: dict[float, list[torch.Tensor]] = {}
    for shift in (0.0, 1.0):

        def choose(group, shift: float = shift) -> torch.Tensor:
            means.setdefault(shift, []).append(group.prior.mean)
            return group.posterior().mean + (shift if group.index == 1 else 0.0)

        with torch.no_grad():
            tiny_model.top_down(tiny_model.activations(images), choose, 4)
    same = [torch.equal(a, b) for a, b in zip(means[0.0], means[1.0], strict=True)]
    assert same == [True, True, False, False]


def test_posteriors_nobody_asks_for_are_not_computed(tiny_model):
    assert tiny_model.sample(2, generator=generator()).shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match="activations"):
        tiny_model.top_down(None, lambda group: group.posterior().mean, 2)


def test_run_groups_stops_early(tiny_model, images):
    seen: list[int] = []

    def choose(group) -> torch.Tensor:
        seen.append(group.index)
        return group.prior.mean

    tiny_model.top_down.run_groups(None, choose, 1, range(2))
    assert seen == [0, 1]


# --- reconstruction and generation


def test_a_reconstruction_is_nearer_to_its_image_than_to_others(tiny_model, photo_patches):
    batch = torch.from_numpy(photo_patches)
    result = tiny_model.reconstruct(batch)
    assert result.shape == batch.shape
    assert result.dtype == torch.uint8
    own, others = ((result.double() - x.double()).square().mean() for x in (batch, batch.roll(1, dims=0)))
    assert own < 0.8 * others


def test_samples_follow_generator_and_temperature(tiny_model):
    first, again = (tiny_model.sample(3, generator=generator()) for _ in range(2))
    assert torch.equal(first, again)
    cold = tiny_model.sample(3, temperature=0.0)
    assert torch.equal(cold[0], cold[1])
    assert not torch.equal(first[0], first[1])


# --- other designs: forward and backward


BASE = {
    "stages": (
        StageConfig(16, 8, 2, bottleneck=0.5),
        StageConfig(8, 8, 3, bottleneck=0.5, linked_blocks=2, extra_top_down=1, extra_top_down_after=1),
        StageConfig(4, 12, 3, bottleneck=0.5, extra_bottom_up=1),
    )
}
STRIDE_4 = {"stages": (StageConfig(16, 8, 2), StageConfig(4, 8, 2), StageConfig(1, 8, 2, kernel=1))}
SAME_RESOLUTION = {"stages": (StageConfig(16, 8, 2), StageConfig(8, 8, 2), StageConfig(8, 8, 5, kernel=5))}
ONE_STAGE = {"stages": (StageConfig(16, 8, 2),)}

DESIGNS = {
    "plain": {},
    "grey": {"channels": 1},
    "two channels": {"channels": 2},
    "four channels": {"channels": 4},
    "5 bits": {"bits": 5},
    "5 bits, published bins": {"bits": 5, "bins": "published"},
    "1 bit": {"bits": 1},
    "bernoulli": {"output": "bernoulli", "channels": 1},
    "logstd": {"posterior_scale": "logstd", "output_scale": "logstd"},
    "residual": {"residual_distribution": True},
    "residual logstd": {"residual_distribution": True, "posterior_scale": "logstd"},
    "two cells": {"cells_per_block": 2},
    "k x k ends": {"pointwise_ends": False},
    "no middle layer": {"middle_layers": 0},
    "one middle layer": {"middle_layers": 1},
    "zero prior": {"zero_prior_weights": True},
    "no stable init": {"stable_init": False},
    "input and output kernel": {"input_kernel": 3, "output_kernel": 5},
    "floor": {"min_output_logscale": -7.0},
    "stride 4": STRIDE_4,
    "two stages of a resolution": SAME_RESOLUTION,
    "one stage": ONE_STAGE,
}


def design(name: str) -> ModelConfig:
    return ModelConfig(**{"resolution": 16, "mixtures": 2, **BASE, **DESIGNS[name]})


@pytest.mark.parametrize("name", DESIGNS)
def test_forward_and_backward_are_finite(name: str, cut_patches):
    config = design(name)
    model = HVAE(config)
    batch = torch.from_numpy(cut_patches(2, config.image_size, config.channels))
    terms = model(batch, gaussian_noise(generator()))
    assert terms.nll.shape == (2,)
    assert terms.kl.shape == (len(config.groups), 2)
    (terms.nll.sum() + terms.kl.sum()).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
    result = model.eval().reconstruct(batch)
    assert result.shape == batch.shape
    assert model.sample(1).shape == batch[:1].shape
    levels = 2 if config.output == "bernoulli" else 2**config.bits
    assert model.elbo(batch).nelbo.isfinite().all()
    # An untrained model must stay in the region of what guessing costs.
    assert model.elbo(batch).distortion.max() < math.log2(levels) + 4


def test_group_shapes_are_what_the_configuration_says():
    config = design("plain")
    shapes = []

    def choose(group) -> torch.Tensor:
        shapes.append(tuple(group.prior.mean.shape))
        return group.prior.mean

    HVAE(config).top_down(None, choose, 2)
    assert shapes == [(2, g.variates, g.resolution, g.resolution) for g in config.groups]


def test_residual_posterior_is_relative_to_the_prior(cut_patches):
    """With equal weights, its mean is the plain posterior's plus the prior's, its std the product of both."""
    batch = torch.from_numpy(cut_patches(2))
    for base in ("std", "logstd"):
        plain_config = dataclasses.replace(design("plain"), posterior_scale=base)
        plain, residual = HVAE(plain_config), HVAE(dataclasses.replace(plain_config, residual_distribution=True))
        residual.load_state_dict(plain.state_dict())
        first = []
        for model in (plain, residual):

            def choose(group, seen: list = first) -> torch.Tensor:
                if group.index == 0:
                    seen.append((group.posterior(), group.prior))
                return group.prior.mean

            with torch.no_grad():
                model.top_down(model.activations(batch), choose, 2)
        (q, prior), (relative, _) = first
        torch.testing.assert_close(relative.mean, q.mean + prior.mean)
        torch.testing.assert_close(relative.std, q.std * prior.std)


def test_stable_init_scales_last_convolutions():
    def spread(stable: bool) -> float:
        torch.manual_seed(0)
        model = HVAE(ModelConfig(16, (StageConfig(16, 64, 2, linked_blocks=16),), stable_init=stable))
        return model.top_down.blocks[0].cells[0].convs[-1].weight.std().item()

    assert spread(True) == pytest.approx(spread(False) / 4, rel=1e-6)


def test_zero_prior_weights_start_at_zero():
    model = HVAE(design("zero prior"))
    for block in model.top_down.blocks:
        assert (block.prior_cell.convs[-1].weight == 0).all()


def test_the_start_is_uniform_within_its_bound():
    start = HVAE(ModelConfig(16, (StageConfig(16, 64, 2),))).top_down.start
    bound = math.sqrt(3 / (64 * 16 * 16))
    assert start.shape == (1, 64, 16, 16)
    assert start.abs().max() <= bound
    assert start.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_uniform_weights_start_as_the_published_vdvaes():
    """Within 1/sqrt(inputs · k · k), the last of a path scaled by its depth; nothing else is random."""
    stages = (StageConfig(8, 32, 4, extra_bottom_up=2, extra_top_down=3), StageConfig(4, 32, 4, extra_bottom_up=6))
    raw = {"skips": "raw", "heads": "direct", "resample": "plain", "output_gain": True, "zero_prior_weights": True}
    model = HVAE(ModelConfig(8, stages, init="uniform", **raw))
    scales = {"bottom_up": 9**-0.5, "top_down": 5**-0.5}  # 9 bottom-up blocks: the last linked one has no cells
    for name, weight in model.named_parameters():
        if name.endswith(("bias", "start", "shift", "prior_cell.convs.3.weight")):
            assert not weight.any(), name
        elif name.endswith("gain"):
            assert (weight == 1).all()
        else:
            scaled = name.endswith(("cells.0.convs.3.weight", "z_conv.weight"))
            bound = weight[0].numel() ** -0.5 * (scales[name.split(".")[0]] if scaled else 1.0)
            assert 0.9 * bound < weight.abs().max() <= bound, name


# --- images that are not what the model takes


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(1, 3, 16, 16), "give uint8"),
        (torch.zeros(3, 16, 16, dtype=torch.uint8), "give uint8"),
        (torch.zeros(1, 1, 16, 16, dtype=torch.uint8), r"this model takes \[3, 16, 16\]"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), r"images are \[3, 32, 32\]"),
        (torch.zeros(1, 16, 16, 3, dtype=torch.uint8), r"images are \[16, 16, 3\]"),
    ],
)
def test_other_images_are_refused_in_one_sentence(tiny_model, wrong, message):
    for call in (tiny_model.elbo, tiny_model.reconstruct, tiny_model.activations):
        with pytest.raises(DataError, match=message) as caught:
            call(wrong)
        assert "\n" not in str(caught.value)


def test_binarised_images_are_28_pixels_wide(cut_patches):
    model = HVAE(ModelConfig(32, (StageConfig(32, 8, 2), StageConfig(8, 8, 2)), channels=1, output="bernoulli"))
    assert isinstance(model.likelihood, Bernoulli)
    batch = torch.from_numpy(cut_patches(2, 28, 1))
    terms = model(batch, gaussian_noise(generator()))
    assert terms.nll.shape == (2,)
    elbo = model.elbo(batch, generator=generator())
    assert elbo.rate[0].item() == pytest.approx(terms.kl[:, 0].sum().item() / math.log(2) / 784, rel=1e-5)
    with pytest.raises(DataError, match=r"takes \[1, 28, 28\]"):
        model.elbo(torch.zeros(1, 1, 32, 32, dtype=torch.uint8))


def test_low_bits_make_no_difference(cut_patches):
    config = design("5 bits")
    model = HVAE(config)
    batch = torch.from_numpy(cut_patches(2))
    floored = batch // 8 * 8
    assert not torch.equal(batch, floored)
    a, b = (model.elbo(x, generator=generator()) for x in (batch, floored))
    assert torch.equal(a.nelbo, b.nelbo)


def test_numbers_do_not_depend_on_the_layout_of_the_images(tiny_model, photo_patches):
    channels_last = torch.from_numpy(np.ascontiguousarray(photo_patches[:2].transpose(0, 2, 3, 1))).permute(0, 3, 1, 2)
    a = tiny_model.elbo(channels_last, generator=generator())
    b = tiny_model.elbo(torch.from_numpy(photo_patches[:2]), generator=generator())
    torch.testing.assert_close(a.nelbo, b.nelbo)
