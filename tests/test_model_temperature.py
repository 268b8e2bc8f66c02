"""Temperatures over depth: every form, every refusal, and what they do to the latent groups."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hvae_codec.config import ModelConfig, StageConfig
from hvae_codec.errors import UsageError
from hvae_codec.model.choices import prior_sample
from hvae_codec.model.image_noise import ImageNoise
from hvae_codec.model.temperature import group_temperatures

FIVE_GROUPS = ModelConfig(
    16,
    (
        StageConfig(16, width=8, variates=3, bottleneck=0.5),
        StageConfig(8, width=8, variates=4, bottleneck=0.5, linked_blocks=2, extra_top_down=1),
        StageConfig(2, width=12, variates=5, bottleneck=0.5),
    ),
)
"""At resolutions 2, 8, 8, 8, 16."""


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
    with pytest.raises(UsageError, match=r"give .* 0\.7:0\.9") as error:
        group_temperatures(text, FIVE_GROUPS)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    ("temperature", "message"),
    [
        ("-0.1", "the temperature -0.1 is"),
        ("0.7:nan", "the temperature nan is"),
        ([1, float("inf"), 1], "the temperature inf is"),
        ("0.7:0.8:0.9", "the temperature schedule is '0.7:0.8:0.9'; give"),
        ("0.7,0.9", "2 temperatures are given; give 1"),
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


def test_sample_takes_every_form(tiny_model):
    def sample(temperature):
        return tiny_model.sample(3, temperature, torch.Generator().manual_seed(0))

    assert torch.equal(sample(0.5), sample("0.5"))
    assert torch.equal(sample("0.5:0.5"), sample(0.5))
    assert not torch.equal(sample("0.5:1.5"), sample(1.0))
    with pytest.raises(UsageError, match=r"give 1 .*, 3 \(.*2, 8, 16\) or 4"):
        sample([1.0, 1.0])
