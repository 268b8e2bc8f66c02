"""Code for GPUs where there is none: tensors of a faked second device never meet the host's, nor are they read there.

Torch's fake tensors have shapes, types and devices, but no numbers. They are on `meta`, which is no CPU, so that all
branches of GPUs are taken, and has gradients in every build of torch. Mixing devices raises, as does every operation
that needs a number: item, bool, nonzero. Not seen: missing kernels, rounding, devices of random generators.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hvae_codec.config import Config, ModelConfig, StageConfig
from hvae_codec.distributed import DistributedContext
from hvae_codec.model.choices import KeptOfGroup
from hvae_codec.model.hvae import HVAE
from hvae_codec.model.top_down import LatentGroup
from hvae_codec.store.quantiser import IntCodec
from hvae_codec.train import recorded_step
from hvae_codec.train.optimizer import FlatOptimizer
from hvae_codec.train.recorded_step import EagerStep, RecordedStep
from hvae_codec.train.update import update

DEVICE, BATCH = "meta", 4
STAGES = (
    StageConfig(8, width=8, variates=3, bottleneck=0.5, linked_blocks=1),
    StageConfig(2, width=12, variates=5, bottleneck=0.5, extra_bottom_up=1),
)


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # What torch does not know of this device.
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    for name in ("adam", "adamax"):
        optimizer = importlib.import_module(f"torch.optim.{name}")
        monkeypatch.setattr(optimizer, "_get_capturable_supported_devices", lambda *_, **__: [DEVICE])
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def config_of(channels: int) -> Config:
    return Config(ModelConfig(8, STAGES, channels=channels, mixtures=2, middle_layers=1))


def model_of(config: Config) -> HVAE:
    with torch.device(DEVICE):
        return HVAE(config.model)


def images_of(config: Config, device: str = DEVICE) -> torch.Tensor:
    return torch.empty(BATCH, config.model.channels, 8, 8, dtype=torch.uint8, device=device)


def noise(group: LatentGroup) -> torch.Tensor:
    return torch.empty_like(group.prior.mean)


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "checkpointed"), [(1, False), (3, True), (4, False)])
def test_training_steps(channels: int, checkpointed: bool):
    config = config_of(channels)
    model = model_of(config)
    if checkpointed:
        model.checkpoint_activations()
    optimizer = FlatOptimizer(model, config.optimizer, 0.99)
    for step in (1, 2):  # without moments, and with
        result = update(model, optimizer, config, images_of(config), noise, step)
    assert {tensor.device.type for tensor in (*result, *optimizer.tensors().values())} == {DEVICE}


@pytest.mark.slow
@pytest.mark.parametrize("codes", [False, True])
def test_a_slim_model_is_trained(codes: bool):
    stages = (replace(STAGES[0], kept=(2,)), replace(STAGES[1], kept=(0,)))
    config = Config(ModelConfig(8, stages, mixtures=2, middle_layers=1, learned_steps=codes))
    model = model_of(config)
    optimizer = FlatOptimizer(model, config.optimizer, 0.99)
    result = update(model, optimizer, config, images_of(config), noise, 1)
    assert {tensor.device.type for tensor in (*result, *optimizer.tensors().values())} == {DEVICE}


@pytest.mark.slow
def test_a_whole_model_is_trained_with_its_mask():
    config = config_of(3)
    model = model_of(config)
    optimizer = FlatOptimizer(model, config.optimizer, 0.99)
    variates, none = torch.empty(1, dtype=torch.int64, device=DEVICE), torch.empty(0, dtype=torch.int64, device=DEVICE)
    model.kept = [KeptOfGroup(none, None), KeptOfGroup(variates, None)]
    result = update(model, optimizer, config, images_of(config), noise, 1)
    assert result.loss.device.type == DEVICE


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_recorded(channels: int, monkeypatch: pytest.MonkeyPatch):
    """A recording may not even be told whether an update is skipped, or groups are balanced."""
    monkeypatch.setattr(recorded_step, "fill_keyed", lambda *_: None)  # a generator of no device
    config = config_of(channels)
    model = model_of(config)
    optimizer = FlatOptimizer(model, config.optimizer, 0.99)
    step_of = RecordedStep(EagerStep(model, optimizer, config, DistributedContext()), [].append)
    for step in (1, 2):
        result = step_of(images_of(config, "cpu"), [(0, step, i) for i in range(BATCH)], step)
    assert {tensor.device.type for tensor in result} == {DEVICE}


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_bounds_and_images(channels: int):
    config = config_of(channels)
    model = model_of(config).requires_grad_(False)
    images = images_of(config)
    for found in (*model.elbo(images), model.reconstruct(images), model.sample(BATCH, 0.8)):
        assert found.device.type == DEVICE


def test_images_from_the_host():
    config = config_of(3)
    assert model_of(config).elbo(images_of(config, "cpu")).rate.device.type == DEVICE


def test_codes():
    z, step = torch.empty(BATCH, 3, 4, 4, device=DEVICE), torch.empty(3, 1, 1, device=DEVICE)
    codes = IntCodec().encode(z, step)
    assert codes.dtype == torch.int16
    assert IntCodec().decode(codes, step).device.type == DEVICE


def test_that_mistakes_are_seen():
    config = config_of(3)
    model = model_of(config)
    with pytest.raises(Exception, match="two devices"):
        model(images_of(config), lambda group: torch.zeros(group.prior.mean.shape))
    with pytest.raises(Exception, match=r"(?i)data.?dependent|_local_scalar_dense"):
        model(images_of(config), lambda group: noise(group) * float(group.prior.mean.max()))
