"""A step on buffers, as it is recorded on a GPU, against `update`: on a CPU the same numbers to the last bit."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from hvae_codec.config import Config
from hvae_codec.distributed import DistributedContext
from hvae_codec.model.hvae import HVAE, Terms
from hvae_codec.model.keyed_noise import keyed_noise
from hvae_codec.model.precision import copied_as
from hvae_codec.model.recorded import Recorded
from hvae_codec.train import recorded_step
from hvae_codec.train.optimizer import FlatOptimizer
from hvae_codec.train.recorded_step import EagerStep, RecordedStep, make_step
from hvae_codec.train.update import StepResult, make_network, update

pytestmark = pytest.mark.slow

BATCH, STEPS = 6, 9
SPOILT = {1: 1e3, 4: torch.nan, 6: 1e3}
"""Factors of the distortion at some steps: its gradients are too large, or not finite."""


class Spoiling:
    """A network some of whose updates are left out."""

    def __init__(self, config: Config) -> None:
        torch.manual_seed(0)
        self.model = HVAE(config.model).to(memory_format=torch.channels_last)
        self.optimizer = FlatOptimizer(self.model, config.optimizer, config.train.ema_decay)
        self.network = make_network(self.model, dataclasses.replace(config.train, precision="fp32"))
        self.calls = 0

    def __call__(self, images, noise) -> Terms:
        self.calls += 1
        terms = self.network(images, noise)
        return Terms(terms.nll * SPOILT.get(self.calls, 1.0), terms.kl)


def recorded(config: Config, warnings: list[str] | None = None) -> tuple[Spoiling, RecordedStep]:
    network = Spoiling(config)
    eager = EagerStep(network, network.optimizer, config, DistributedContext())
    return network, RecordedStep(eager, [].append if warnings is None else warnings.append)


def batches(photo_patches) -> Iterator[tuple[int, torch.Tensor, list[tuple[int, ...]]]]:
    for step in range(1, STEPS + 1):
        yield step, torch.from_numpy(photo_patches[step : step + BATCH]), [(0, step, i) for i in range(BATCH)]


@pytest.mark.parametrize("name", ["adamax", "adam"])
@pytest.mark.parametrize("balance_steps", [0, 5])
def test_numbers_are_those_of_update(tiny_config: Config, photo_patches, name: str, balance_steps: int):
    config = dataclasses.replace(
        tiny_config,
        optimizer=dataclasses.replace(tiny_config.optimizer, name=name, skip_threshold=20.0),
        loss=dataclasses.replace(tiny_config.loss, balance_groups=balance_steps > 0, balance_steps=balance_steps),
    )
    ours, step_of = recorded(config)
    theirs = Spoiling(config)
    skipped = []
    for step, images, keys in batches(photo_patches):
        found = step_of(images, keys, step)
        expected = update(theirs, theirs.optimizer, config, images, keyed_noise(config.model, keys, "cpu"), step)
        for ours_, other in zip(found, expected, strict=True):
            assert torch.equal(ours_.nan_to_num(), other.nan_to_num()), step
        skipped += [step] if found.skipped else []
    assert skipped == list(SPOILT)
    tensors = ours.optimizer.tensors()
    assert all(torch.equal(tensors[key], other) for key, other in theirs.optimizer.tensors().items())


def test_a_batch_of_another_size_runs_unrecorded(tiny_config: Config, photo_patches):
    (ours, step_of), theirs = recorded(tiny_config), Spoiling(tiny_config)
    for step, size in enumerate((4, 2, 4), start=1):
        images, keys = torch.from_numpy(photo_patches[:size]), [(0, step, i) for i in range(size)]
        found = step_of(images, keys, step)
        expected = update(
            theirs, theirs.optimizer, tiny_config, images, keyed_noise(tiny_config.model, keys, "cpu"), step
        )
        assert found.loss == expected.loss
    assert torch.equal(ours.optimizer.weights, theirs.optimizer.weights)


class Rerun(Recorded[StepResult]):
    """A GPU whose replays run what was recorded anew."""

    def __init__(self, function: Callable[[], StepResult], _: torch.device, *rest: Any) -> None:
        super().__init__(function, torch.device("cuda"), *rest)

    def _launched(self) -> StepResult:
        return self._function()

    def record(self) -> None:
        self._recording = (None, None)

    def _replay(self, *_: object) -> StepResult:
        return self._function()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["adamax", "adamw"])
def test_the_step_that_recordings_are_compared_with_is_taken_back(
    tiny_config: Config, photo_patches, name: str, precision: str, monkeypatch: pytest.MonkeyPatch
):
    """Nothing of it is left, in the second step and in the one after the balance has ended."""
    config = dataclasses.replace(
        tiny_config,
        optimizer=dataclasses.replace(tiny_config.optimizer, name=name, skip_threshold=20.0),
        loss=dataclasses.replace(tiny_config.loss, balance_groups=True, balance_steps=4),
        train=dataclasses.replace(tiny_config.train, precision=precision),
    )
    monkeypatch.setattr(recorded_step, "Recorded", Rerun)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "Stream", object)
    made, losses = [], []
    for _ in range(2):
        torch.manual_seed(0)
        model = HVAE(config.model).to(memory_format=torch.channels_last)
        optimizer = FlatOptimizer(model, config.optimizer, 0.9, copied_as(precision, "cuda"))
        optimizer.prime()
        made.append(EagerStep(make_network(model, config.train), optimizer, config, DistributedContext()))
    for step_of in (made[0], RecordedStep(made[1], pytest.fail)):
        losses.append([step_of(images, keys, step).loss for step, images, keys in batches(photo_patches)])
    assert losses[0] == losses[1]
    expected, found = (eager.optimizer.tensors() for eager in made)
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


@pytest.fixture
def broken_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that records nothing."""

    @contextlib.contextmanager
    def graph(*_: object, **__: object) -> Iterator[None]:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore lines")
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)


@pytest.mark.usefixtures("broken_recording")
def test_a_failed_recording_is_told_once_and_steps_go_on(tiny_config: Config, photo_patches):
    warnings: list[str] = []
    _, step_of = recorded(tiny_config, warnings)
    theirs = Spoiling(tiny_config)
    for step, images, keys in batches(photo_patches):
        found = step_of(images, keys, step)
        if step == 1:
            step_of._recorded.record()
        noise = keyed_noise(tiny_config.model, keys, "cpu")
        expected = update(theirs, theirs.optimizer, tiny_config, images, noise, step)
        assert torch.equal(found.rate, expected.rate)
    assert not step_of.replays
    assert warnings == [
        "the training step cannot be recorded as a CUDA graph (CUDA error: operation not permitted when stream is "
        "capturing); steps run without"
    ]


@pytest.mark.parametrize(
    ("wanted", "processes", "recorded", "told"),
    [
        ("auto", DistributedContext(), False, False),
        ("on", DistributedContext(), False, True),
        ("auto", DistributedContext(device="cuda"), True, False),
        ("on", DistributedContext(device="cuda:1"), True, False),
        ("off", DistributedContext(device="cuda"), False, False),
        ("auto", DistributedContext(0, 2, device="cuda:0"), False, False),
        ("on", DistributedContext(0, 2, device="cuda:0"), False, True),
    ],
)
def test_when_steps_are_recorded(
    tiny_config: Config, wanted: str, processes: DistributedContext, recorded: bool, told: bool
):
    warnings: list[str] = []
    network = Spoiling(tiny_config)
    step = make_step(wanted, network, network.optimizer, tiny_config, processes, warnings.append)
    assert isinstance(step, RecordedStep) == recorded
    assert len(warnings) == told
    with contextlib.suppress(IndexError):
        assert warnings[0] == "steps are recorded as a CUDA graph by one process on one GPU alone; they run without"
