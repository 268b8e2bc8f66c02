"""Steps in parts against steps on whole batches: the same loss, update and numbers, with the memory of one part."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Sequence

import pytest
import torch

from hvae_codec.config import Config, TrainConfig, config_to_dict, with_settings
from hvae_codec.distributed import DistributedContext
from hvae_codec.errors import ConfigError, UsageError
from hvae_codec.model.hvae import HVAE
from hvae_codec.train.accumulation import check_batch_size, numbers_of_parts
from hvae_codec.train.optimizer import FlatOptimizer
from hvae_codec.train.recorded_step import EagerStep, RecordedStep
from hvae_codec.train.update import StepResult, make_network

BATCH = 8
BALANCED = "loss.balance_steps=4"


def step_of(config: Config, *, recorded: bool = False, keep: Sequence[torch.Tensor] | None = None) -> EagerStep:
    torch.manual_seed(0)
    model = HVAE(config.model).to(memory_format=torch.channels_last)
    if keep is not None:
        model.prune_to(keep)
    optimizer = FlatOptimizer(model, config.optimizer, config.train.ema_decay)
    eager = EagerStep(make_network(model, config.train), optimizer, config, DistributedContext())
    eager.whole = RecordedStep(eager, [].append) if recorded else eager
    return eager


def trained(step: EagerStep, photo_patches, steps: int) -> list[StepResult]:
    results = []
    for number in range(1, steps + 1):
        images = torch.from_numpy(photo_patches[number % 16 : number % 16 + BATCH])
        results.append(step.whole(images, [(0, number, i) for i in range(BATCH)], number))
    return results


def fp32(config: Config, *settings: str) -> Config:
    return with_settings(config, ["train.precision=fp32", "optimizer.skip_threshold=none", *settings])


def assert_alike(found: Sequence[StepResult], expected: Sequence[StepResult], rtol: float) -> None:
    for ours, whole in zip(found, expected, strict=True):
        for name in ("loss", "rate", "distortion", "grad_norm"):
            torch.testing.assert_close(getattr(ours, name), getattr(whole, name), rtol=rtol, atol=1e-7)
        assert (ours.skipped, ours.bad_image) == (whole.skipped, whole.bad_image)


@pytest.fixture(scope="module")
def whole(tiny_config: Config, photo_patches) -> tuple[EagerStep, list[StepResult]]:
    """8 steps on whole batches; groups are balanced in the first 4."""
    step = step_of(fp32(tiny_config, BALANCED))
    return step, trained(step, photo_patches, 8)


@pytest.mark.parametrize(("parts", "recorded"), [(2, False), (4, True)])
def test_steps_in_parts_are_those_of_whole_batches(tiny_config, photo_patches, whole, parts: int, recorded: bool):
    expected, results = whole
    step = step_of(fp32(tiny_config, BALANCED, f"train.accumulate={parts}"), recorded=recorded)
    assert_alike(trained(step, photo_patches, 8), results, rtol=2e-5)
    torch.testing.assert_close(step.optimizer.weights, expected.optimizer.weights, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(step.optimizer.ema, expected.optimizer.ema, rtol=1e-3, atol=1e-4)


def test_balance_is_of_the_whole_batch(tiny_config, photo_patches, monkeypatch: pytest.MonkeyPatch):
    """Images whose groups share out their KL differently: with each part's own balance the loss is another."""
    config = fp32(tiny_config, "loss.kl_schedule=constant", "train.accumulate=4")
    spread = torch.linspace(0, 10, BATCH)
    losses = []
    for parts in (1, 4):
        step = step_of(with_settings(config, [f"train.accumulate={parts}"]))
        network = step.network

        def uneven(images, noise, network=network):
            terms = network(images, noise)
            first = images[:, 0, 0, 0].float()  # tells which images these are
            return terms._replace(kl=terms.kl * torch.stack([first, 1 + 0 * first, 10 - first, 1 + 0 * first]))

        step.update = rebound(step, uneven)
        images = torch.from_numpy(photo_patches[:BATCH].copy())
        images[:, 0, 0, 0] = spread.to(torch.uint8)
        losses.append(step(images, [(0, 1, i) for i in range(BATCH)], 1).loss)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)


def rebound(step: EagerStep, network):
    step.network = network
    return type(step)(network, step.optimizer, step.config, DistributedContext()).update


@pytest.mark.parametrize("changed", [{"checkpoint_activations": True}, {"precision": "bf16"}])
def test_with_other_ways_to_compute(tiny_config, photo_patches, changed: dict[str, object]):
    config = fp32(tiny_config)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, **changed))
    found, expected = (
        trained(step_of(with_settings(config, [f"train.accumulate={parts}"])), photo_patches, 2) for parts in (4, 1)
    )
    assert_alike(found, expected, rtol=2e-2 if "precision" in changed else 1e-5)


@pytest.mark.parametrize("codes", [False, True])
def test_with_a_mask_and_with_codes(tiny_config, photo_patches, codes: bool):
    config = fp32(tiny_config)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, learned_steps=codes))
    keep = [torch.arange(group.variates)[:, None, None] < 2 for group in config.model.groups]
    keep[1][:] = False
    found, expected = (
        trained(step_of(with_settings(config, [f"train.accumulate={parts}"]), keep=keep), photo_patches, 2)
        for parts in (2, 1)
    )
    assert_alike(found, expected, rtol=1e-5)


def test_an_image_without_a_finite_loss_has_its_place_in_the_batch(tiny_config, photo_patches):
    step = step_of(fp32(tiny_config, "train.accumulate=4"))
    network = step.network

    def broken(images, noise):
        terms = network(images, noise)
        return terms._replace(nll=terms.nll * torch.where(images[:, 0, 0, 0] == 77, torch.nan, 1.0))

    step.update = rebound(step, broken)
    images = torch.from_numpy(photo_patches[:BATCH].copy())
    images[:, 0, 0, 0] = torch.tensor([0, 0, 0, 0, 0, 77, 0, 77])
    before = step.optimizer.weights.detach().clone()
    result = step(images, [(0, 1, i) for i in range(BATCH)], 1)
    assert (result.bad_image, result.skipped) == (5, True)
    assert torch.equal(step.optimizer.weights, before)


def most_saved(step: EagerStep, photo_patches) -> int:
    """Bytes that are saved for the backward pass at once, at most."""
    now = most = 0

    def freed(size: int) -> None:
        nonlocal now
        now -= size

    class Saved:
        def __init__(self, tensor: torch.Tensor) -> None:
            nonlocal now, most
            self.tensor = tensor
            size = tensor.numel() * tensor.element_size()
            now += size
            most = max(most, now)
            weakref.finalize(self, freed, size)

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        trained(step, photo_patches, 1)
    return most


def test_memory_is_that_of_a_part(tiny_config, photo_patches):
    saved = [most_saved(step_of(fp32(tiny_config, f"train.accumulate={n}")), photo_patches) for n in (1, 2, 4)]
    assert saved[1] < 0.6 * saved[0]
    assert saved[2] < 0.35 * saved[0]


def test_nothing_of_a_part_lasts_into_the_next(tiny_config, photo_patches):
    """Its graph held activations that had been used: cifar10_C1 in 2 parts took 2.2 GB in place of 1.6."""
    step = step_of(fp32(tiny_config, "train.accumulate=4"))
    network, earlier = step.network, []

    def watched(images, noise):
        alive = [part() is not None for part in earlier]
        terms = network(images, noise)
        earlier.append(weakref.ref(terms.nll))
        assert not any(alive)
        return terms

    step.update = rebound(step, watched)
    trained(step, photo_patches, 1)
    assert len(earlier) == 7  # the KL of three parts comes first


# --- the setting


@pytest.mark.parametrize(
    ("batch_size", "parts", "processes", "sentence"),
    [
        (12, 5, 1, r"train.accumulate is 5, and the 12 images .* 5 equal parts; give --set train.accumulate=6"),
        (12, 24, 1, r"give --set train.accumulate=12"),
        (24, 3, 3, r"the 8 images a step of each of 3 processes .* give --set train.accumulate=4"),
        (7, 7, 2, r"train.batch_size is 7, .* of all 2 processes .* give --set train.batch_size=8, or another number"),
    ],
)
def test_batches_that_cannot_be_cut(batch_size: int, parts: int, processes: int, sentence: str):
    with pytest.raises(UsageError, match=sentence):
        check_batch_size(TrainConfig(batch_size=batch_size, accumulate=parts), processes)


def test_batches_that_can_be_cut():
    for parts in numbers_of_parts(24):
        check_batch_size(TrainConfig(batch_size=48, accumulate=parts), 2)


def test_a_step_has_one_part_or_more(tiny_config):
    with pytest.raises(ConfigError, match=r"train.accumulate is 0; it must be at least 1"):
        with_settings(tiny_config, ["train.accumulate=0"])


def test_configurations_are_written_as_before(tiny_config):
    assert "accumulate" not in config_to_dict(tiny_config)["train"]
    in_parts = with_settings(tiny_config, ["train.accumulate=4"])
    assert config_to_dict(in_parts)["train"]["accumulate"] == 4
    assert with_settings(in_parts, ["train.accumulate=1"]) == tiny_config
