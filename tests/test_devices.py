"""Code for GPUs where there is none: tensors of a faked second device never meet the host's, nor are they read there.

Torch's fake tensors have shapes, types and devices, but no numbers. They are on `meta`, which is no CPU, so that all
branches of GPUs are taken, and has gradients in every build of torch. Mixing devices raises, as does every operation
that needs a number: item, bool, nonzero. Not seen: missing kernels, rounding, devices of random generators.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from hvae_codec.config import Config, ModelConfig, StageConfig, with_settings
from hvae_codec.distributed import DistributedContext
from hvae_codec.encode.batch_coder import BatchCoder
from hvae_codec.encode.coder import LatentCoder, quantiser_steps
from hvae_codec.model.choices import KeptOfGroup
from hvae_codec.model.hvae import HVAE
from hvae_codec.model.keyed_noise import noise_dims
from hvae_codec.model.top_down import LatentGroup
from hvae_codec.prune.kl_stats import KLStats, _Sums
from hvae_codec.prune.mask import LatentMask
from hvae_codec.prune.sweep import ElboSweep
from hvae_codec.store.quantiser import IntCodec
from hvae_codec.train import memory_probe, recorded_step
from hvae_codec.train.memory_probe import check_memory
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
    adam = importlib.import_module("torch.optim.adam")
    monkeypatch.setattr(adam, "_get_capturable_supported_devices", lambda *_, **__: [DEVICE])
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
    """A recording may not even be told whether an update is skipped."""
    monkeypatch.setattr(recorded_step, "fill_keyed", lambda *_: None)  # a generator of no device
    config = with_settings(config_of(channels), ["train.accumulate=2"] if channels == 1 else [])
    model = model_of(config)
    optimizer = FlatOptimizer(model, config.optimizer, 0.99)
    step_of = RecordedStep(EagerStep(model, optimizer, config, DistributedContext()), [].append)
    for step in (1, 2):
        result = step_of(images_of(config, "cpu"), [(0, step, i) for i in range(BATCH)], step)
    assert {tensor.device.type for tensor in result} == {DEVICE}


@pytest.mark.parametrize("recorded", [False, True])
def test_a_step_is_tried(recorded: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory_probe, "make_network", lambda model, *_: model)  # autocast of no device
    config = with_settings(config_of(3), [f"train.batch_size={BATCH}", "train.accumulate=2", "train.precision=fp32"])
    model = model_of(config)
    optimizer = FlatOptimizer(model, config.optimizer, 0.99)
    check_memory(model, optimizer, config, DistributedContext(device=DEVICE), 1, recorded=recorded)
    assert {tensor.device.type for tensor in optimizer.tensors().values()} == {DEVICE}


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


class Crossings(TorchDispatchMode):
    """Counts the copies between host and device; operations that wait for a number raise by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.in_, self.out = 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket._qualified_op_name
        if name in ("aten::_to_copy", "aten::copy_"):
            source = args[0 if name == "aten::_to_copy" else 1].device.type
            self.in_ += (source, result.device.type) == ("cpu", DEVICE)
            self.out += (source, result.device.type) == (DEVICE, "cpu")
        return result


def stats_of(config: Config) -> KLStats:
    groups, ones = config.model.groups, np.ones
    kl = tuple(1.0 / (1 + i + np.arange(g.dims)).reshape(-1, g.resolution, g.resolution) for i, g in enumerate(groups))
    return KLStats(kl, tuple(ones(g.variates) for g in groups), 1, "")


@pytest.mark.parametrize("granularity", ["variate", "position"])
@pytest.mark.parametrize("keep", [0.2, 1.0])
def test_a_batch_is_coded_with_few_copies(granularity: str, keep: float):
    """Images in, all codes out at once; codes in, pixels out; nothing in between is read by the host."""
    config = config_of(3)
    model, stats = model_of(config).requires_grad_(False), stats_of(config)
    mask, codec = LatentMask.from_keep(stats, keep, granularity=granularity), IntCodec()
    batches = BatchCoder(LatentCoder(model, mask, codec, quantiser_steps(mask, codec, stats)), BATCH)
    pixels = np.zeros((BATCH - 1, 3, 8, 8), np.uint8)
    for _ in range(2):  # the first batch makes buffers
        with Crossings() as crossings:
            batch = batches.start_encoding(pixels)
        assert (crossings.in_, crossings.out) == (1, 1)
        assert len(batch.images) == BATCH
    columns = batches.coder.columns
    stored = {r: np.zeros((BATCH - 1, *columns.item(r)), np.int16) for r in columns.resolutions}
    for _ in range(2):
        with Crossings() as crossings:
            batches.start(stored)
        assert (crossings.in_, crossings.out) == (1, 2)  # with whether pixels are finite


@pytest.mark.parametrize("codes", [False, True])
def test_a_batch_is_measured_with_few_copies(codes: bool):
    """Under several masks, and for the ranking; whatever the number of groups and masks."""
    config = config_of(3)
    config = replace(config, model=replace(config.model, learned_steps=codes))
    model, stats = model_of(config).requires_grad_(False), stats_of(config)
    pixels = np.zeros((BATCH, 3, 8, 8), np.uint8)
    masks = [LatentMask.from_keep(stats, keep) for keep in (0.2, 0.5, 1.0)]
    drawn = torch.empty(BATCH, noise_dims(config.model), device=DEVICE)
    with unset_fake_temporarily():  # masks are read on the host, once
        sweep = ElboSweep(model, masks)
    for work in (sweep.measure, model.recording.of(_Sums(model).add, model.device)):
        for _ in range(2):
            with Crossings() as crossings:
                work(torch.from_numpy(pixels), drawn)
            assert (crossings.in_, crossings.out) == (1, 0)


def test_that_mistakes_are_seen():
    config = config_of(3)
    model = model_of(config)
    with pytest.raises(Exception, match="two devices"):
        model(images_of(config), lambda group: torch.zeros(group.prior.mean.shape))
    with pytest.raises(Exception, match=r"(?i)data.?dependent|_local_scalar_dense"):
        model(images_of(config), lambda group: noise(group) * float(group.prior.mean.max()))
