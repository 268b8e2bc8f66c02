from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch.nn import functional as F

from hvae_codec.config import Config, ModelConfig, StageConfig, config_from_dict, config_to_dict
from hvae_codec.errors import ConfigError
from hvae_codec.model.blocks import Pool, Unpool
from hvae_codec.model.checkpoint import load_model, model_hash, save_model
from hvae_codec.model.hvae import HVAE

STAGES = (
    StageConfig(16, 8, 2, bottleneck=0.5, extra_top_down=1),
    StageConfig(8, 8, 3, bottleneck=0.5),
    StageConfig(2, 8, 4, bottleneck=0.5),
)
PLAIN = ModelConfig(16, STAGES, resample="plain", mixtures=2, middle_layers=1)
PROJECTED = dataclasses.replace(PLAIN, resample="projected")


def test_plain_resampling_has_no_weights_but_the_bias():
    assert list(Pool(8, 8, 4, projected=False).parameters()) == []
    assert [name for name, _ in Unpool(8, 8, 4, 8, projected=False).named_parameters()] == ["bias"]
    lost = set(HVAE(PROJECTED).state_dict()) - set(HVAE(PLAIN).state_dict())
    assert {name.rsplit(".", 2)[0].split(".", 3)[3] for name in lost} == {"pool", "unpool"}
    assert len(lost) == 2 * 2 * 2  # two pools and two unpools, each a weight and a bias


def test_plain_pool_averages_and_plain_unpool_repeats():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert Pool(1, 1, 2, projected=False)(x).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    up = Unpool(1, 1, 2, 8, projected=False)
    assert torch.equal(up(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    with torch.no_grad():
        up.bias += torch.arange(64.0).reshape(1, 1, 8, 8)
    assert torch.equal(F.avg_pool2d(up(x) - up.bias, 2), x)


def test_plain_resampling_adds_zeros_and_cuts_channels():
    x = torch.arange(1.0, 33.0).reshape(1, 2, 4, 4)
    wider = Pool(2, 5, 4, projected=False)(x)
    assert wider.flatten().tolist() == [8.5, 24.5, 0, 0, 0]
    narrower = Unpool(2, 1, 1, 4, projected=False, biased=False)
    assert torch.equal(narrower(x), x[:, :1])
    assert not list(narrower.parameters())


def test_a_plain_model_trains_and_comes_back(tmp_path, cut_patches):
    model = HVAE(PLAIN)
    images = torch.from_numpy(cut_patches(2))
    terms = model(images, lambda group: torch.zeros_like(group.prior.mean))
    (terms.nll.sum() + terms.kl.sum()).backward()
    assert all(p.grad is not None for p in model.parameters())
    save_model(tmp_path / "run", Config(PLAIN), model.state_dict())
    loaded = load_model(tmp_path / "run")
    assert loaded.config == PLAIN
    assert model_hash(loaded) == model_hash(model)


def test_plain_resampling_needs_one_width():
    wider = (dataclasses.replace(STAGES[0], width=12), *STAGES[1:])
    sentence = r"\[12, 8\]; model.resample = plain .* projected"
    with pytest.raises(ConfigError, match=sentence):
        dataclasses.replace(PLAIN, stages=wider)
    assert dataclasses.replace(PROJECTED, stages=wider).stages == wider


def test_runs_from_before_the_field_load_and_keep_their_hash():
    """Stores and KL statistics hold the hash of the model that they were made with."""
    data = json.loads(json.dumps(config_to_dict(Config(PROJECTED))))
    del data["model"]["resample"]
    assert config_from_dict(data).model == PROJECTED
    model = HVAE(ModelConfig(4, (StageConfig(4, 4, 1),), mixtures=1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    assert model_hash(model) == "2042a6aa07bc0018435a1374f4f6928ce232ec342ee0baff3550ca7c90703330"
    assert model_hash(HVAE(PLAIN)) != model_hash(HVAE(PROJECTED))
