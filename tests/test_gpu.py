"""On a real GPU: recorded steps, going on to the last bit, and stores that another machine decodes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from hvae_codec.config import Config, with_settings
from hvae_codec.data.sources import as_source
from hvae_codec.distributed import DistributedContext
from hvae_codec.encode.coder import LatentCoder, quantiser_steps
from hvae_codec.model.checkpoint import load_model
from hvae_codec.model.choices import Noise
from hvae_codec.model.hvae import HVAE, Terms
from hvae_codec.model.keyed_noise import keyed_noise
from hvae_codec.model.precision import copied_as, same_algorithms
from hvae_codec.prune.kl_stats import kl_stats
from hvae_codec.prune.mask import LatentMask
from hvae_codec.store.quantiser import IntCodec
from hvae_codec.train.loop import TrainOptions, start_run, train
from hvae_codec.train.optimizer import FlatOptimizer
from hvae_codec.train.recorded_step import EagerStep, RecordedStep
from hvae_codec.train.update import StepResult, make_network, update

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use"),
]
BATCH, STEPS = 6, 7


def prepared(config: Config, *, compiled: bool = True) -> EagerStep:
    torch.manual_seed(0)
    model = HVAE(config.model).to("cuda", memory_format=torch.channels_last)
    dtype = copied_as(config.train.precision, "cuda")
    optimizer = FlatOptimizer(model, config.optimizer, config.train.ema_decay, dtype)
    network = make_network(model, config.train)
    if not compiled:
        model.compile_formulas(lambda function: function)
    return EagerStep(network, optimizer, config, DistributedContext(device="cuda"))


@pytest.mark.parametrize(
    ("name", "precision", "checkpointed"),
    [("adamax", "fp32", False), ("adam", "bf16", False), ("adamax", "bf16", True)],
)
def test_replayed_steps_are_those_of_update(tiny_config, photo_patches, name: str, precision: str, checkpointed: bool):
    """Also where the balance ends, an update is left out, and results are read later."""
    config = dataclasses.replace(
        tiny_config,
        optimizer=dataclasses.replace(tiny_config.optimizer, name=name, skip_threshold=0.42),
        loss=dataclasses.replace(tiny_config.loss, balance_steps=4),
        train=dataclasses.replace(tiny_config.train, precision=precision, checkpoint_activations=checkpointed),
    )
    eager, warnings, results, expected = prepared(config), [], [], []
    other = prepared(config)
    step_of = RecordedStep(eager, warnings.append)
    with same_algorithms():
        for step in range(1, STEPS + 1):
            images = torch.from_numpy(photo_patches[step : step + BATCH]).cuda()
            keys = [(0, step, i) for i in range(BATCH)]
            results.append(step_of(images, keys, step))
            noise = keyed_noise(config.model, keys, "cuda")
            expected.append(update(other.network, other.optimizer, config, images, noise, step))
    assert not warnings
    assert step_of.replays
    assert_same(results, expected)
    torch.testing.assert_close(eager.optimizer.weights, other.optimizer.weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("codes", [False, True])
def test_compiled_formulas_give_the_losses_of_those_as_written(tiny_config, photo_patches, codes: bool):
    config = dataclasses.replace(tiny_config, model=dataclasses.replace(tiny_config.model, learned_steps=codes))
    results = []
    for compiled in (False, True):
        step_of = prepared(config, compiled=compiled)
        images, keys = torch.from_numpy(photo_patches[:BATCH]).cuda(), [(0, 1, i) for i in range(BATCH)]
        with same_algorithms():
            results.append([step_of(images, keys, step) for step in (1, 2, 3)])
    assert_same(*results)


def assert_same(results: list[StepResult], expected: list[StepResult]) -> None:
    for found, wanted in zip(results, expected, strict=True):
        assert found.skipped == wanted.skipped
        assert found.bad_image == -1
        for name in ("loss", "rate", "distortion", "grad_norm"):
            torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("graph", ["auto", "off"])
def test_a_run_goes_on_to_the_last_bit(tiny_config, photo_patches, tmp_path: Path, graph: str):
    source = as_source(photo_patches)
    config = with_settings(tiny_config, ["train.steps=8"])
    options = TrainOptions(save_every=4, log_every=1, validation_images=4, graph=graph, deterministic=True)
    options = dataclasses.replace(options, device="cuda")

    def run(folder: Path, *lengths: int) -> None:
        for steps in lengths:
            wanted = with_settings(config, [f"train.steps={steps}"])
            ready = start_run(folder, wanted, resume=steps != lengths[0], device="cuda")
            train(folder, ready, source.split("train"), source.split("val"), options)

    run(tmp_path / "whole", 8)
    run(tmp_path / "broken", 3, 8)
    whole, broken = (rows(tmp_path / name / "metrics.csv") for name in ("whole", "broken"))
    assert broken == whole
    whole, broken = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "broken"))
    assert broken == whole


def rows(path: Path) -> list[str]:
    """Without the seconds."""
    return [line.rpartition(",")[0] for line in path.read_text().splitlines()]


def test_codes_are_decoded_elsewhere(tiny_run: Path, photo_patches):
    """Encoded on the GPU, decoded on both: pixels within one level."""
    here, there = load_model(tiny_run, "cuda"), load_model(tiny_run)
    stats, codec = kl_stats(there, photo_patches, batch_size=8), IntCodec()
    mask = LatentMask.from_keep(stats, 0.3)
    steps = quantiser_steps(mask, codec, stats)
    images = torch.from_numpy(photo_patches)
    stored = LatentCoder(here, mask, codec, steps).encode(images)
    pixels = [LatentCoder(model, mask, codec, steps).decode_pixels(stored).cpu() for model in (here, there)]
    assert (pixels[0].int() - pixels[1].int()).abs().max() <= 1
    own = LatentCoder(there, mask, codec, steps).encode(images)
    same = np.mean([np.mean(stored[r] == own[r]) for r in stored])
    assert same > 0.99


def test_a_step_that_cannot_be_recorded_goes_on_without(tiny_config, photo_patches):
    """One that waits for a number, which a recording cannot; told once. Last: a failure may spoil what follows."""
    eager, other, warnings = prepared(tiny_config), prepared(tiny_config), []
    network = eager.network

    def waiting(images: torch.Tensor, noise: Noise) -> Terms:
        terms = network(images, noise)
        assert float(terms.nll.sum()) > 0
        return terms

    eager.network = waiting
    step_of = RecordedStep(eager, warnings.append)
    with same_algorithms():
        for step in range(1, 5):
            images = torch.from_numpy(photo_patches[step : step + BATCH]).cuda()
            keys = [(0, step, i) for i in range(BATCH)]
            found, expected = step_of(images, keys, step), other(images, keys, step)
            torch.testing.assert_close(found.loss, expected.loss, rtol=1e-3, atol=0)
    assert not step_of.replays
    assert len(warnings) == 1
    assert warnings[0].startswith("the training step cannot be recorded as a CUDA graph (")
