from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hvae_codec.config import Config, config_from_dict, config_to_dict
from hvae_codec.errors import UsageError
from hvae_codec.model.hvae import HVAE
from hvae_codec.presets import load_preset, preset_names

PUBLISHED = json.loads((Path(__file__).parent / "golden" / "presets.json").read_text())


def test_all_twenty_published_presets_are_there():
    assert len(PUBLISHED) == 20
    assert set(PUBLISHED) < set(preset_names())


@pytest.fixture
def _no_initialisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are only counted; setting them takes most of the time."""
    for rule in ("kaiming_uniform_", "xavier_uniform_", "uniform_", "zeros_"):
        monkeypatch.setattr(torch.nn.init, rule, lambda tensor, *_, **__: tensor)


@pytest.mark.usefixtures("_no_initialisation")
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_presets_have_the_published_size(name: str):
    model = load_preset(name).model
    assert len(model.groups) == PUBLISHED[name]["stochastic_layers"]
    assert model.latent_dims == PUBLISHED[name]["latent_dims"]
    with torch.device("meta"):
        network = HVAE(model)
    assert sum(p.numel() for p in network.parameters()) == PUBLISHED[name]["parameters"]


def test_every_preset_loads_and_goes_round():
    for name in preset_names():
        config = load_preset(name)
        assert isinstance(config, Config)
        assert config_from_dict(config_to_dict(config)) == config


def test_presets_report_exact_bins():
    assert {load_preset(name).model.bins for name in preset_names()} == {"exact"}


def test_tiny32_is_small():
    model = load_preset("tiny32").model
    assert (model.resolution, model.channels, model.bits) == (32, 3, 8)
    assert sum(p.numel() for p in HVAE(model).parameters()) < 1_000_000


def test_a_misspelt_preset_names_the_nearest():
    with pytest.raises(UsageError, match=r"unknown preset 'cifar10_basline'; did you mean cifar10_baseline\?"):
        load_preset("cifar10_basline")
