"""Figures are the same to the last bit wherever they are measured; parts, and how they travel."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hvae_codec.analysis.cutoff_table import analyze
from hvae_codec.analysis.evaluation import evaluate
from hvae_codec.data.sources import as_source, open_images
from hvae_codec.engine.engine import Engine, Here
from hvae_codec.engine.executor_engine import ExecutorEngine
from hvae_codec.engine.where import engine_on
from hvae_codec.errors import DataError, ModelError, UsageError
from hvae_codec.model.checkpoint import load_model
from hvae_codec.model.hvae import HVAE
from hvae_codec.prune.cutoffs import CutoffSpec
from hvae_codec.prune.kl_stats import KLStats, KLWork, kl_stats
from hvae_codec.prune.mask import LatentMask
from hvae_codec.prune.parts import Cut, Part, measured_parts
from hvae_codec.prune.sweep import SweepWork, sweep
from hvae_codec.prune.tolerance import find_tolerated
from hvae_codec.store.quantiser import IntCodec
from photos import Patches, save_png

IMAGES, BATCH = 280, 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photo_patches: Patches) -> Path:
    """280 images as files: two row groups, 9 batches of 32, 5 parts for sums."""
    made = tmp_path_factory.mktemp("images")
    for number in range(IMAGES):
        turned = np.rot90(photo_patches[number % 24], number // 24, axes=(1, 2))
        pixels = np.kron(turned, np.ones((1, 2, 2), np.uint8)) if number == 100 else turned  # one is larger
        save_png(made / ("a" if number % 2 else "b") / f"{number:03d}.png", pixels)
    return made


def figures(model: HVAE, folder: Path, engine: Engine | None) -> dict[str, Any]:
    """All that can be measured on an engine, as plain data whose equality is that of bits."""
    source = open_images(folder, size=16, channels=3)
    options: dict[str, Any] = {"batch_size": BATCH, "seed": 3, "engine": engine}
    stats = kl_stats(model, source, **options)
    masks = [LatentMask.from_keep(stats, keep) for keep in (0.1, 1.0)]
    cutoffs = [CutoffSpec(keep=0.1).cutoff(model, stats)]
    table = analyze(model, stats, source, cutoffs, IntCodec(), pictures=260, **options)
    few = source.evenly(70)
    assert source.resized == 1
    evaluation = evaluate(model, few, samples=2, **options)
    found = find_tolerated(model, few, stats, 0.02, **options)
    pixels = [table.originals.tobytes(), *(images.tobytes() for images in table.decoded)]
    return {
        "stats": bits(stats),
        "sweep": [(row.rate.tobytes(), row.distortion.tobytes()) for row in sweep(model, few, masks, **options)],
        "table": table.table.to_json(double_precision=15) + str(table.table.to_numpy().tolist()),
        "pictures": pixels,
        "evaluation": (evaluation.images.to_csv(), evaluation.kl_nats.tobytes(), str(evaluation.figures)),
        "tolerated": json.dumps({k: v for k, v in asdict(found).items() if k != "mask"})
        + str(found.mask.kept_variates),
    }


def bits(stats: KLStats) -> list[bytes]:
    assert stats.largest_mean is not None
    return [array.tobytes() for array in stats.kl_bits + stats.posterior_std + stats.largest_mean]


@pytest.fixture(scope="module")
def alone(tiny_model: HVAE, folder: Path) -> dict[str, Any]:
    return figures(tiny_model, folder, None)


@pytest.fixture(scope="module")
def two() -> Iterator[Engine]:
    """Two processes."""
    with engine_on("local:2") as engine:
        yield engine


def check_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert [name for name in expected if found[name] != expected[name]] == []


def test_threads_give_the_figures_of_this_process(tiny_model, folder, alone):
    with ThreadPoolExecutor(3) as pool:
        check_equal(figures(tiny_model, folder, ExecutorEngine(pool)), alone)


@pytest.mark.slow
def test_processes_give_the_figures_of_this_one(tiny_model, folder, alone, two):
    check_equal(figures(tiny_model, folder, two), alone)


@pytest.mark.slow
def test_dask_gives_the_figures_of_this_process(tiny_model, folder, alone):
    with engine_on("dask:2") as engine:
        check_equal(figures(tiny_model, folder, engine), alone)


def test_an_executor_will_do(tiny_model, photo_patches):
    with ThreadPoolExecutor(2) as pool:
        found = kl_stats(tiny_model, photo_patches, executor=pool, batch_size=5)
        assert pool.submit(int).result() == 0  # it stays open
    assert bits(found) == bits(kl_stats(tiny_model, photo_patches, batch_size=5))
    with pytest.raises(UsageError, match="leave one of them out"):
        kl_stats(tiny_model, photo_patches, engine=Here(), executor=pool)


@pytest.mark.parametrize(("batch_size", "unit"), [(10, 1), (64, 1), (100, 256), (300, 256)])
def test_batches_are_the_same_in_one_part_and_in_several(photo_patches, batch_size, unit):
    """However an engine gets them: all in one part, in parts that are read in one go, or in parts alone."""
    source = as_source(np.concatenate([photo_patches] * 30)[:700])
    cut = Cut.of(batch_size, unit)
    whole = [len(batch) for _, batch in Part(source, range(700), cut).batches()]
    parts = [Part(source, rows, cut) for rows in cut.ranges(700)]
    travelled = [pickle.loads(pickle.dumps(part)) for part in parts]
    assert sum(whole) == 700
    for some in (parts, travelled):
        assert [len(batch) for part in some for _, batch in part.batches()] == whole
    for part, moved in zip(parts, travelled, strict=True):
        assert (part.first, len(part), str(part)) == (moved.first, len(moved), str(moved))
        assert part.keys(range(3, 7), 5) == moved.keys(range(3, 7), 5)
        for (numbers, own), (moved_numbers, theirs) in zip(part.batches(), moved.batches(), strict=True):
            assert numbers == moved_numbers
            assert (own == theirs).all()


def test_parts_do_not_grow_with_small_batches():
    assert list(Cut.of(10).ranges(150)) == [range(70), range(70, 140), range(140, 150)]
    assert list(Cut.of(256).ranges(256)) == [range(256)]
    with pytest.raises(UsageError, match="batch size is 0"):
        Cut.of(0)


def test_work_is_one_object_where_it_arrives_again(tiny_model, photo_patches):
    """Else each task would load the model, and record its graph anew."""
    masks = [LatentMask.from_keep(kl_stats(tiny_model, photo_patches), 0.5)]
    work = SweepWork(tiny_model, masks, 0)
    shared = work.per_process
    assert shared.get() is work
    once, again = (pickle.loads(pickle.dumps(shared)).get() for _ in range(2))
    assert once is again
    assert once is not work
    other = pickle.loads(pickle.dumps(KLWork(tiny_model, seed=0, sample=True).per_process)).get()
    assert other is not once
    source, cut = as_source(photo_patches), Cut.of(10)
    part = Part(source, range(24), cut)
    found, expected = once(pickle.loads(pickle.dumps(part))), work(part)
    for one, other in zip(found.result, expected.result, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (found.seen is None, expected.seen is None) == (False, True)
    assert len(pickle.dumps(shared)) < 3000


def test_a_task_says_which_images_are_broken(tiny_model, folder, tmp_path, two, photo_patches):
    for number in range(70):
        save_png(tmp_path / f"{number:02d}.png", photo_patches[0])
    (tmp_path / "66.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"66\.png"):
        kl_stats(tiny_model, open_images(tmp_path, size=16, channels=3), engine=two)


@pytest.mark.slow
def test_workers_that_cannot_load_the_model_say_so(tiny_config, tiny_run, tmp_path, photo_patches, two):
    nowhere = HVAE(tiny_config.model).eval().requires_grad_(False)
    with pytest.raises(UsageError, match="of no run"):
        kl_stats(nowhere, photo_patches, engine=two)
    nowhere.run = tmp_path / "gone"
    with pytest.raises(ModelError, match=r"the worker on .* cannot take part: .*gone"):
        kl_stats(nowhere, photo_patches, engine=two)
    nowhere.run = tiny_run  # which has other weights
    with pytest.raises(ModelError, match=r"cannot take part: the model of .*tiny is"):
        kl_stats(nowhere, photo_patches, engine=two)
    with pytest.raises(UsageError, match=r"no GPU here; give --device cpu"):
        kl_stats(load_model(tiny_run), photo_patches, engine=two, device="cuda")


@pytest.mark.parametrize("elsewhere", [False, True])
def test_progress_counts_all_images(tiny_model, photo_patches, elsewhere):
    source = as_source(np.concatenate([photo_patches] * 7))
    work, cut = KLWork(tiny_model, seed=0, sample=False), Cut.of(50)
    seen: list[tuple[int, int]] = []
    with ThreadPoolExecutor(2) as pool:
        engine = ExecutorEngine(pool) if elsewhere else Here()
        list(measured_parts(engine, work, source, cut, lambda *call: seen.append(call), sums=True))
    assert seen == sorted(seen)
    assert seen[-1] == (168, 168)
