"""On a real GPU: recorded steps, going on to the last bit, and stores that another machine decodes."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from hvae_codec.config import Config, with_settings
from hvae_codec.data.sources import as_source
from hvae_codec.distributed import DistributedContext
from hvae_codec.encode.batch_coder import BatchCoder
from hvae_codec.encode.coder import LatentCoder, quantiser_steps
from hvae_codec.encode.image_encoder import ImageEncoder
from hvae_codec.errors import TrainingError
from hvae_codec.model.checkpoint import load_model
from hvae_codec.model.choices import Noise
from hvae_codec.model.hvae import HVAE, Terms
from hvae_codec.model.keyed_noise import keyed_noise
from hvae_codec.model.precision import copied_as, same_algorithms
from hvae_codec.model.recorded import Recording
from hvae_codec.presets import load_preset
from hvae_codec.prune.kl_stats import kl_stats
from hvae_codec.prune.mask import LatentMask
from hvae_codec.prune.sweep import sweep
from hvae_codec.store.quantiser import IntCodec
from hvae_codec.train.formulas import compile_formulas
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
    if compiled:
        compile_formulas(model, optimizer, config, BATCH // config.train.accumulate, refuse)
    return EagerStep(make_network(model, config.train), optimizer, config, DistributedContext(device="cuda"))


def refuse(warning: str) -> None:
    raise AssertionError(warning)


@pytest.mark.parametrize(
    ("name", "precision", "checkpointed", "parts"),
    [
        ("adamax", "fp32", False, 1),
        ("adam", "bf16", False, 1),
        ("adamax", "bf16", True, 1),
        ("adamax", "fp32", True, 3),
    ],
)
def test_replayed_steps_are_those_of_update(
    tiny_config, photo_patches, name: str, precision: str, checkpointed: bool, parts: int
):
    """Also where the balance ends, an update is left out, results are read later, or a step is in parts."""
    config = dataclasses.replace(
        tiny_config,
        optimizer=dataclasses.replace(tiny_config.optimizer, name=name, skip_threshold=0.42),
        loss=dataclasses.replace(tiny_config.loss, balance_steps=4),
        train=dataclasses.replace(
            tiny_config.train, precision=precision, checkpoint_activations=checkpointed, accumulate=parts
        ),
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
def test_what_is_named_fits(tmp_path: Path, graph: str):
    """On a GPU of which this process may have 2 GiB, which batches of 256 do not fit into."""
    config = with_settings(load_preset("tiny32"), ["train.steps=2", "train.batch_size=256"])
    source = as_source(np.zeros((256, 3, 32, 32), dtype=np.uint8))
    options = TrainOptions(validation_images=4, graph=graph, device="cuda")

    def run(wanted: Config) -> None:
        ready = start_run(tmp_path / "run", wanted, resume=False, device="cuda")
        train(tmp_path / "run", ready, source.split("train"), source.split("val"), options)

    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2 * 2**30 / whole)
    try:
        with pytest.raises(TrainingError, match=r"a step of 256 images does not fit in .* GiB; it fits in") as refused:
            run(config)
        assert not (tmp_path / "run").exists()
        (parts,) = re.findall(r"in \d+ parts: --set (train.accumulate=\d+)", str(refused.value))[:1]
        run(with_settings(config, [parts]))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


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


@pytest.mark.parametrize("granularity", ["variate", "position"])
def test_recorded_batches_are_those_launched(tiny_run: Path, photo_patches, granularity: str):
    """Codes and pixels of every batch, the last one filled up; and of statistics, whose sums grow in the recording."""
    launched, recorded, told = load_model(tiny_run, "cuda"), load_model(tiny_run, "cuda"), []
    launched.recording, recorded.recording = Recording("off"), Recording("on", told.append)
    codec, found = IntCodec(), []
    for model in (launched, recorded):
        stats = kl_stats(model, photo_patches, batch_size=4)
        mask = LatentMask.from_keep(stats, 0.3, granularity=granularity)
        source = as_source(photo_patches[:22])
        coder = LatentCoder(model, mask, codec, quantiser_steps(mask, codec, found[0][0] if found else stats))
        encoder = ImageEncoder.of(coder, source, 256, 4, evaluate=True, verify=True)
        stored, measured = encoder.encode_range(range(22))
        (row,) = sweep(model, photo_patches, [mask], batch_size=4)
        found.append((stats, stored, measured, row))
    assert not told
    one, other = found
    for name, kl in enumerate(one[0].kl_bits):
        np.testing.assert_allclose(kl, other[0].kl_bits[name], rtol=1e-4, atol=1e-6)
    for resolution, numbers in one[1].items():
        np.testing.assert_array_equal(numbers, other[1][resolution])
    for name, numbers in one[2].items():
        np.testing.assert_allclose(numbers, other[2][name], rtol=1e-5)
    np.testing.assert_allclose(one[3].nelbo, other[3].nelbo, rtol=1e-5)


def test_the_last_batch_has_the_codes_of_full_ones(tiny_run: Path, photo_patches):
    model = load_model(tiny_run, "cuda")
    stats, codec = kl_stats(model, photo_patches), IntCodec()
    mask = LatentMask.from_keep(stats, 0.3)
    batches = BatchCoder(LatentCoder(model, mask, codec, quantiser_steps(mask, codec, stats)), 16)
    whole = batches.start_encoding(photo_patches[:16]).stored()
    for count in (1, 5, 16):
        some = batches.start_encoding(photo_patches[:count]).stored()
        assert all(np.array_equal(numbers, whole[r][:count]) for r, numbers in some.items())


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
