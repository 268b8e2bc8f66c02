"""Temperatures over depth, and images that do not depend on the batch they are drawn in."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hvae_codec.config import ModelConfig, StageConfig
from hvae_codec.errors import UsageError
from hvae_codec.model.checkpoint import fill_model
from hvae_codec.model.hvae import HVAE, gaussian_noise, prior_sample
from hvae_codec.model.image_noise import ImageNoise
from hvae_codec.model.published import import_published
from hvae_codec.model.sampling import sample_images
from hvae_codec.model.temperature import group_temperatures

GOLDEN = Path(__file__).parent / "golden"
FIVE_GROUPS = ModelConfig(
    16,
    (
        StageConfig(16, width=8, variates=3, bottleneck=0.5),
        StageConfig(8, width=8, variates=4, bottleneck=0.5, linked_blocks=2, extra_top_down=1),
        StageConfig(2, width=12, variates=5, bottleneck=0.5),
    ),
)
"""At resolutions 2, 8, 8, 8, 16."""


def draw(model, count, *args, **options) -> np.ndarray:
    return np.concatenate(list(sample_images(model, count, *args, **options)))


# --- text to temperatures


@pytest.mark.parametrize(
    ("given_as", "expected"),
    [
        ("0.85", [0.85] * 5),
        (0.85, [0.85] * 5),
        (1, [1.0] * 5),
        ("0", [0.0] * 5),
        ("0.7:0.9", [0.7, 0.75, 0.8, 0.85, 0.9]),
        ("1.2:1", [1.2, 1.15, 1.1, 1.05, 1.0]),
        ("0.7, 0.8, 1", [0.7, 0.8, 0.8, 0.8, 1.0]),
        ([0.7, 0.8, 1], [0.7, 0.8, 0.8, 0.8, 1.0]),
        ("1,2,3,4,5", [1.0, 2.0, 3.0, 4.0, 5.0]),
        ((1, 2, 3, 4, 5), [1.0, 2.0, 3.0, 4.0, 5.0]),
    ],
)
def test_forms(given_as, expected):
    assert group_temperatures(given_as, FIVE_GROUPS) == tuple(expected)


@pytest.mark.parametrize("text", ["", "warm", "0.7:", ":", "0.7,,0.9", "0.7;0.9", "1:2:x"])
def test_unknown_forms_name_the_known_ones(text):
    with pytest.raises(UsageError, match=r"give one number, a linear schedule such as 0\.7:0\.9, or a list") as error:
        group_temperatures(text, FIVE_GROUPS)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    ("temperature", "message"),
    [
        ("-0.1", "the temperature -0.1 is not possible; it must be 0 (the prior's mean) or above"),
        ("0.7:nan", "the temperature nan is not possible"),
        ([1, float("inf"), 1], "the temperature inf is not possible"),
        ("0.7:0.8:0.9", "the temperature schedule is '0.7:0.8:0.9'; give its two ends, such as 0.7:0.9"),
        (
            "0.7,0.9",
            "2 temperatures are given; give 1 for all, 3 (one a latent resolution: 2, 8, 16) or 5 (one a latent group)",
        ),
        ([], "0 temperatures are given"),
        ([None, 1, 2], "the temperature is [None, 1, 2]"),
    ],
)
def test_wrong_temperatures(temperature, message):
    with pytest.raises(UsageError) as error:
        group_temperatures(temperature, FIVE_GROUPS)
    assert str(error.value).startswith(message)


@given(st.floats(0, 10), st.floats(0, 10))
def test_a_schedule_is_linear_between_its_ends(first, last):
    found = np.array(group_temperatures(f"{first}:{last}", FIVE_GROUPS))
    np.testing.assert_allclose(found, first + (last - first) * np.arange(5) / 4, atol=1e-9)


def test_where_resolutions_and_groups_are_as_many_both_readings_agree(tiny_config):
    config = dataclasses.replace(tiny_config.model, stages=tiny_config.model.stages[::2])
    assert len(config.groups) == 2
    assert group_temperatures("0.5,1", config) == (0.5, 1.0)


# --- what temperatures do


@torch.no_grad()
def test_each_group_is_drawn_at_its_own_temperature(tiny_model):
    """z = mean + T · std · noise with T = 0 in the groups where it is 0, and the given noise elsewhere."""
    temperatures = (0.0, 0.5, 0.0, 2.0)
    noise, seen = ImageNoise(0, range(3)), []
    inner = prior_sample(ImageNoise(0, range(3)), temperatures)

    def choose(group):
        z = inner(group)
        expected = group.prior.mean + temperatures[group.index] * group.prior.std * noise(group)
        torch.testing.assert_close(z, expected)
        seen.append(group.index)
        return z

    tiny_model.top_down(None, choose, 3)
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["symmetric", "asymmetric"])
@torch.no_grad()
def test_temperature_0_is_that_of_published_models(name):
    folder = GOLDEN / name
    config, weights = import_published(folder / f"checkpoints-{name}", folder / f"hparams-{name}.cfg")
    model = HVAE(config.model).eval()
    fill_model(model, weights, Path("golden"))
    with np.load(folder / "golden.npz") as golden:
        logits = torch.from_numpy(golden["prior_t0/logits"])
    zeros = group_temperatures("0:0", config.model)
    output = model.top_down(None, prior_sample(gaussian_noise(), zeros), 2)
    assert (output - logits).abs().max() / logits.abs().max() < 1e-5
    expected = model.likelihood.to_pixels(model.likelihood.mean(logits)).int()
    for images in (model.sample(2, "0"), torch.from_numpy(draw(model, 2, [0.0] * len(config.model.groups)))):
        assert (images.int() - expected).abs().max() <= 1


def test_sample_takes_every_form(tiny_model):
    def sample(temperature):
        return tiny_model.sample(3, temperature, torch.Generator().manual_seed(0))

    assert torch.equal(sample(0.5), sample("0.5"))
    assert torch.equal(sample("0.5:0.5"), sample(0.5))
    assert not torch.equal(sample("0.5:1.5"), sample(1.0))
    with pytest.raises(UsageError, match=r"give 1 for all, 3 \(one a latent resolution: 2, 8, 16\) or 4"):
        sample([1.0, 1.0])


# --- images drawn in batches


@pytest.mark.parametrize("output_temperature", [None, 0.7])
def test_images_do_not_depend_on_the_batch_size(tiny_model, output_temperature):
    """Up to rounding of convolutions, which may move a pixel by a level."""
    options = {"output_temperature": output_temperature, "seed": 3}
    whole = draw(tiny_model, 11, "0.7:1", batch_size=64, **options)
    assert whole.dtype == np.uint8
    assert whole.shape == (11, 3, 16, 16)
    for batch_size in (1, 4):
        again = draw(tiny_model, 11, "0.7:1", batch_size=batch_size, **options)
        assert np.abs(again.astype(int) - whole).max() <= 1
    assert np.abs(draw(tiny_model, 5, "0.7:1", **options).astype(int) - whole[:5]).max() <= 1
    assert len({image.tobytes() for image in whole}) == 11


def test_the_seed_and_the_output_temperature_matter(tiny_model):
    expected = draw(tiny_model, 4)
    assert (draw(tiny_model, 4) == expected).all()
    assert (draw(tiny_model, 4, seed=1) != expected).any()
    noisy, quiet = (draw(tiny_model, 4, output_temperature=t).astype(int) for t in (1.0, 0.01))
    assert (draw(tiny_model, 4, output_temperature=1.0) == noisy).all()
    assert np.abs(noisy - expected).mean() > 2 * np.abs(quiet - expected).mean()


def test_binarised_images(tiny_config):
    config = dataclasses.replace(tiny_config.model, channels=1, output="bernoulli")
    model = HVAE(config).eval().requires_grad_(False)
    assert draw(model, 3).shape == (3, 1, 12, 12)
    assert set(np.unique(draw(model, 3, output_temperature=1.0))) == {0, 255}


def test_batches_are_made_when_they_are_asked_for(tiny_model):
    batches = sample_images(tiny_model, 10**9, batch_size=2)
    assert next(batches).shape == next(batches).shape == (2, 3, 16, 16)
    assert [len(batch) for batch in sample_images(tiny_model, 5, batch_size=2)] == [2, 2, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "the number of images is 0; it must be at least 1"),
        ({"batch_size": 0}, "the batch size is 0; it must be at least 1"),
        ({"output_temperature": 0.0}, "the output temperature is 0; it must be above 0"),
        ({"output_temperature": float("nan")}, "the output temperature is nan"),
        ({"temperature": "hot"}, "the temperature is 'hot'"),
    ],
)
def test_wrong_input_is_refused_at_the_call(tiny_model, options, message):
    with pytest.raises(UsageError) as error:
        sample_images(tiny_model, **({"count": 1} | options))
    assert str(error.value).startswith(message)
