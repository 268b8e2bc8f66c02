"""The training studies run from end to end at their smallest, and a killed one goes on as if nothing had been."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.base import clone
from sklearn.pipeline import make_pipeline

from hvae_codec.analysis.ranking_file import ranking_path
from hvae_codec.analysis.step_search import find_step
from hvae_codec.config import Config
from hvae_codec.data import sample as sample_data
from hvae_codec.data.sample import Box
from hvae_codec.data.sources import as_source, open_images
from hvae_codec.errors import UsageError
from hvae_codec.model.hvae import HVAE
from hvae_codec.prune.kl_stats import kl_stats, save_kl_stats
from hvae_codec.prune.mask import LatentMask
from hvae_codec_cli.app import main
from stores import make_spec, make_store

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))  # its files import each other as scripts do
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "studies"))

import data_sources
import data_urls
import encode_speed
import gpu_check
import gpu_tables
import gpu_training
import gradient_smoothing
import kill_workers
import linear_probe
import model_size
import names_in_memory
import output_bound
import probe
import pruning
import read_speed
import scale
import scale_simulation
import signals
import slim_models
import start_time
import step_cost
import store_codecs
import study
import task_cost
import two_machines
import vdvae_import
import verify_workers
from step_cost import StepCost

pytestmark = pytest.mark.slow

Cut = Callable[..., NDArray[np.uint8]]


@pytest.fixture(autouse=True)
def _few_patches(monkeypatch: pytest.MonkeyPatch, cut_patches: Cut) -> None:
    """A few patches in place of 7,800, fewer samples; the processes that measure are not started."""

    def patches(_out: Path, size: int, held_out: int) -> study.Patches:
        return study.Patches(cut_patches(8, size), cut_patches(min(held_out, 4), size))

    def measure(config: Config | None, **_: object) -> StepCost:
        return StepCost(0.5, 1.0, 10.0, 5, 6, 7, "cpu") if config else StepCost(mebibytes=4.0)

    for module in (gradient_smoothing, output_bound, gpu_training):
        monkeypatch.setattr(module, "photo_patches", patches)
        monkeypatch.setattr(module, "use_threads", lambda _count: None)  # of this process, so of later tests too
    for module in (model_size, gpu_training):
        monkeypatch.setattr(module, "measure", measure)
    monkeypatch.setattr(gpu_training, "TEMPERATURES", (0.8,))


@pytest.fixture
def plan(tmp_path: Path, tiny_config: Config) -> study.Plan:
    config = replace(tiny_config, train=replace(tiny_config.train, steps=5, batch_size=3))
    return study.Plan(tmp_path / "run", config, evaluate_every=2, seed=1)


def results(out: Path, name: str) -> pd.DataFrame:
    """The rows of a study, after a look at its other files."""
    assert {"conditions", "command", "settings"} <= json.loads((out / f"{name}.json").read_text()).keys()
    assert (out / f"{name}.md").exists() or name == "steps"
    return pd.read_csv(out / f"{name}.csv")


@pytest.mark.parametrize("module", [gradient_smoothing, output_bound, model_size, gpu_training, probe])
def test_defaults_parse(module: ModuleType) -> None:
    assert module.parse([]).out.parts[0] == "studies"


def test_gradient_smoothing(tmp_path: Path) -> None:
    arguments = ["--small", "--out", str(tmp_path), "--scales", "smoothed", "unsmoothed", "--thresholds", "0.01", "800"]
    gradient_smoothing.main(arguments)
    rows = results(tmp_path, "gradient_smoothing")
    assert rows["batch_size"].tolist() == [2, 2, 4, 4]
    assert (rows["at_least_0.01"] == rows["steps"]).all()
    assert (rows["at_least_800"] == 0).all()
    assert rows["change"].notna().tolist() == [True, False, True, False]
    assert (tmp_path / "gradient_smoothing.png").stat().st_size > 1000


def test_output_bound(tmp_path: Path) -> None:
    output_bound.main(["--small", "--bits", "5", "--out", str(tmp_path)])
    rows = results(tmp_path, "output_bound")
    assert rows["floor"].tolist() == [-7.0, -7.0, -250.0, -250.0]
    np.testing.assert_allclose(rows["nelbo"], rows["rate"] + rows["distortion"])
    assert rows["ssim"].between(-1.0, 1.0).all()
    assert (tmp_path / "output_bound.png").exists()


def test_model_size_takes_off_the_empty_process(tmp_path: Path) -> None:
    model_size.main(["--out", str(tmp_path)])
    rows = results(tmp_path, "model_size")
    assert len(rows) == len(model_size.FAMILY)
    assert (rows["mebibytes"] == 6.0).all()
    assert (tmp_path / "model_size.png").exists()


def test_gpu_training_on_the_cpu(tmp_path: Path) -> None:
    gpu_training.main(["--device", "cpu", "--small", "--minutes", "0.005", "--out", str(tmp_path)])
    assert results(tmp_path, "steps")["images_per_second"].tolist() == [4.0, 4.0]
    assert np.isfinite(results(tmp_path, "training")["nelbo"]).all()
    for name in ("samples.png", "reconstructions.png", "training.png"):
        assert (tmp_path / name).exists()


def test_coded_size_counts_bits_of_all_files(cut_patches: Cut) -> None:
    flat, photographs = np.zeros((2, 3, 32, 32), np.uint8), cut_patches(6, 32)
    webp = gpu_training.BASELINES["lossless WebP"]
    assert gpu_training.coded_size(flat, webp) < 0.1 < 1.0 < gpu_training.coded_size(photographs, webp) < 8.0


def test_a_killed_run_goes_on_to_the_same_numbers(plan: study.Plan, cut_patches: Cut) -> None:
    patches = study.Patches(cut_patches(8), cut_patches(3))
    unbroken = study.run(replace(plan, folder=plan.folder.with_name("unbroken")), patches)

    def kill(_message: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.run(plan, patches, kill)
    gone_on = study.run(plan, patches)
    for name in ("nelbo", "grad_norm"):
        assert [step[name] for step in gone_on.steps] == pytest.approx([s[name] for s in unbroken.steps], abs=1e-12)
    assert [row["step"] for row in gone_on.held_out] == [2, 4, 5]
    assert gone_on.held_out[-1]["nelbo"] == pytest.approx(unbroken.held_out[-1]["nelbo"], abs=1e-12)
    finished = study.run(plan, patches, kill)  # has nothing left to do
    np.testing.assert_array_equal(finished.nelbo, gone_on.nelbo)


def test_a_folder_with_another_run_is_refused(plan: study.Plan, cut_patches: Cut) -> None:
    patches = study.Patches(cut_patches(4), cut_patches(2))
    study.run(plan, patches)
    with pytest.raises(UsageError, match="another --out"):
        study.run(replace(plan, seed=2), patches)


def test_batches_hold_every_image_once_an_epoch() -> None:
    pixels = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)
    epoch = np.concatenate([study.batch_of(pixels, 4, 0, step, flip=True).numpy().ravel() for step in (1, 2, 3)])
    assert sorted(epoch[:6]) == sorted(epoch[6:]) == list(range(6))


def test_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("coffee", "ihc")
    monkeypatch.setattr(sample_data, "PHOTOGRAPHS", {name: sample_data.PHOTOGRAPHS[name] for name in names})
    monkeypatch.setitem(sample_data.PATCHES, "train", 40)
    monkeypatch.setitem(sample_data.PATCHES, "val", 80)
    monkeypatch.setattr(probe, "use_threads", lambda _count: None)
    monkeypatch.setattr(linear_probe, "STRENGTHS", (10.0,))
    monkeypatch.setattr(linear_probe, "INNER_FOLDS", 2)
    probe.main(["--quick", "--tasks", "photos", "--out", str(tmp_path)])
    rows = results(tmp_path, "probe").set_index("representation")
    assert set(rows["task"]) == {probe.PATCHES, probe.BANDS}
    assert set(rows.loc[probe.ALL, "dims"]) == {76_304}
    assert (rows.loc[probe.PIXELS, "accuracy"] > rows.loc[probe.PIXELS, "chance"]).all()
    folds = pd.read_csv(tmp_path / "probe_folds.csv")
    means = folds.groupby(["task", "representation", "dims"])["accuracy"].mean()
    for row in rows.reset_index().itertuples():
        assert row.accuracy == pytest.approx(means[row.task, row.representation, row.dims])
    assert (tmp_path / "probe.png").stat().st_size > 1000


def test_start_time() -> None:
    start = start_time.measure(["--version"], repeats=1)
    assert (start.command, start.seconds > 0, start.mebibytes > 5) == ("--version", True, True)


def test_data_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_sources, "memory", lambda *paths: 1.0 * len(paths))
    kinds = ["folder", "stored zip", "deflated zip", "tar", "parquet", "stored npz"]
    rows = data_sources.measure(tmp_path, 300, rounds=2, epochs=2, kinds=kinds)
    assert [row.kind for row in rows] == kinds
    assert all(len(row.in_order) == len(row.pixels) == 2 and min(row.at_random) > 0 for row in rows)
    assert all(len(row.epoch) == 2 and min(row.epoch) > 0 for row in rows)
    assert data_sources.as_table(rows).row_count == 6


def test_data_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.setenv(name, "")  # what the benchmark sets is taken back
    monkeypatch.setattr(data_urls, "memory", lambda name: 1.0)
    paths = data_urls.containers(tmp_path, 300)
    with data_urls.served(tmp_path, 0) as requests:
        rows = {row[0]: row for row in data_urls.measure(tmp_path, paths, requests, steps=2)}
    assert len(rows) == 7
    assert rows["tar, here"][-1] == "0 to open; for 1,000 images 0.0 and 0"
    asked = float(rows["tar, bucket"][-1].partition("images ")[2].split()[0])
    assert 0 < asked < 20 < float(rows["tar, bucket, nothing read ahead"][-1].split()[-1])


def test_read_speed(tmp_path: Path) -> None:
    read_speed.write(tmp_path / "out.zarr", 300, {1: 3, 4: 2})
    rows = dict(read_speed.measure(tmp_path / "out.zarr", reads=3, workers=[0]))
    assert rows["images, numbers an image"] == "300, 35"
    assert rows["shuffled epoch, 0 workers, items"].endswith(" images/s")


@pytest.fixture
def encode_speed_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[list[str]]]:
    """Runs `encode_speed` with a command line; the rows of its table, first the headings."""
    monkeypatch.setattr(encode_speed.torch, "set_num_threads", lambda _count: None)  # of this process, as above
    monkeypatch.setattr(encode_speed, "reuse_freed_memory", lambda: None)

    def rows(*options: str | Path) -> list[list[str]]:
        smallest = ["--threads", "1", "--rounds", "1", "--batches", "2", "--batch-size", "4", "--images", "12"]
        monkeypatch.setattr(sys, "argv", ["encode_speed.py", *map(str, options), *smallest])
        encode_speed.main()
        lines = [re.split("[│┃|]", line)[1:-1] for line in capsys.readouterr().out.splitlines()]
        return [[cell.strip() for cell in cells] for cells in lines if len(cells) > 2]

    return rows


def numbers(cells: list[str]) -> list[float]:
    """The numbers in the cells of a table, such as 1,234.5 and -0.2%; `ValueError` where one holds another thing."""
    return [float(number.strip(" %").replace(",", "")) for cell in cells for number in cell.split(", ")]


def test_encode_speed_of_the_model(encode_speed_rows: Callable[..., list[list[str]]]) -> None:
    _, *rows = encode_speed_rows("model", "--preset", "digits8")
    assert [row[0].split(",")[1] for row in rows] == [" lowest", " anywhere"]
    for row in rows:
        assert re.fullmatch(r"\d+ of \d+", row[1])
        assert min(numbers(row[2:])) > 0.0


def test_slim_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(slim_models.torch, "set_num_threads", lambda _count: None)  # of this process, as above
    monkeypatch.setattr(slim_models, "reuse_freed_memory", lambda: None)
    told = ["--presets", "digits8", "--keep", "0.2", "--seconds", "0", "--batch-size", "4", "--out", str(tmp_path)]
    slim_models.main(told)
    assert "digits8, anywhere" in capsys.readouterr().out
    rows = pd.DataFrame(json.loads((tmp_path / "slim_models.json").read_text())["rows"])
    assert rows["case"].tolist() == ["digits8, lowest", "digits8, anywhere"]
    for what in ("parameters_{}", "encode_{}_multiplications", "decode_{}_multiplications"):
        assert (rows[what.format("after")] < rows[what.format("before")]).all(), what
    assert (rows["embedded_bytes_after"] < 0.6 * rows["embedded_bytes_before"]).all()
    assert (rows[[f"{work}_after_images_per_second" for work in ("encode", "decode")]] > 0.0).all(axis=None)


def test_encode_speed_of_the_pipeline(
    encode_speed_rows: Callable[..., list[list[str]]], tmp_path: Path, cut_patches: Cut
) -> None:
    np.save(tmp_path / "data.npy", cut_patches(12, 8, 1)[:, 0])
    headings, *rows = encode_speed_rows("pipeline", "--preset", "digits8", "--data", tmp_path / "data.npy")
    assert len(rows) == 2
    for row in rows:
        values = dict(zip(headings[1:], numbers(row[1:]), strict=True))
        assert min(values["encoder alone"], values["whole, files"], values["whole, array"]) > 0.0


def test_encode_speed_of_workers(
    encode_speed_rows: Callable[..., list[list[str]]],
    tmp_path: Path,
    tiny_run: Path,
    tiny_model: HVAE,
    photo_patches: NDArray[np.uint8],
) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    ranking_path(run).parent.mkdir()
    save_kl_stats(ranking_path(run), kl_stats(tiny_model, photo_patches))
    np.save(tmp_path / "data.npy", photo_patches.transpose(0, 2, 3, 1))
    _, row = encode_speed_rows("workers", "--run", run, "--data", tmp_path / "data.npy", "--keep", "0.3")
    one, two, ratio = numbers(row[1:])
    assert ratio == pytest.approx(two / one, rel=0.2)  # of rounded numbers


@pytest.fixture(scope="module")
def codecs_benchmark() -> ModuleType:
    """`benchmarks/codecs.py`: the `codecs` that an import finds is Python's."""
    path = Path(__file__).parents[1] / "benchmarks" / "codecs.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_codecs", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_codecs(
    codecs_benchmark: ModuleType, tmp_path: Path, tiny_run: Path, tiny_model: HVAE, photo_patches: NDArray[np.uint8]
) -> None:
    for number, pixels in enumerate(photo_patches.transpose(0, 2, 3, 1)):
        image = tmp_path / "data" / ("val" if number % 2 else "train") / f"{number}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(image)

    def measured(*steps: str) -> pd.DataFrame:
        options = ["--data", str(tmp_path / "data"), "--keep", "30%", "--out", str(tmp_path), "--steps", *steps]
        codecs_benchmark.main([str(tiny_run), *options])
        return results(tmp_path, "codecs")

    rows = measured("1", "4", "8")
    coarser, auto = rows[:3], rows.iloc[3]
    assert rows["auto"].tolist() == [False, False, False, True]
    sizes = ["blosc", "zstd", "zstd, 256", "archive", "archive, 256", "prior"]
    assert (rows[sizes] > 0.0).all(axis=None)
    assert np.isfinite(rows[sizes]).all(axis=None)
    assert (rows["archive"] < rows["blosc"]).all()
    assert coarser["distortion"].is_monotonic_increasing
    assert (coarser[["psnr", *sizes]].diff().dropna() < 0.0).all(axis=None)
    data = open_images(tmp_path / "data", size=16, channels=3)
    stats = kl_stats(tiny_model, data.split("train"))
    found = find_step(tiny_model, data.split("val"), LatentMask.from_keep(stats, 0.3), stats)
    assert auto["step"] == found.step
    assert auto["distortion"] == pytest.approx(found.distortion, rel=1e-6)
    again = measured(str(found.step))  # two coders that share all groups
    pd.testing.assert_series_equal(again.iloc[0].drop("auto"), again.iloc[1].drop("auto"), check_names=False)
    assert again["prior"].iloc[1] == pytest.approx(auto["prior"])


def test_codecs_under_a_gaussian_prior(codecs_benchmark: ModuleType) -> None:
    """Bins a quarter of a std wide: their entropy is about the Gaussian's own, 2.047 bits, plus 2."""
    z = np.random.default_rng(0).normal(size=(5000, 2, 2, 1)) * np.array([1.0, 0.25])[:, None, None]
    step = np.array([0.25, 0.0625])[:, None, None]
    places = np.stack([np.round(z / step) * step, np.broadcast_to(step / 2.0, z.shape)]).astype(np.float32)
    assert codecs_benchmark.prior_bits(places) / z.size == pytest.approx(4.047, abs=0.02)


def test_store_codecs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_store(tmp_path / "out.zarr", make_spec(steps={r: 9 * s for r, s in make_spec().steps.items()}))
    store_codecs.main([str(store.path), "--repeats", "1", "--reads", "2"])
    rows = [row for row in capsys.readouterr().out.splitlines() if "│" in row]
    assert len(rows) == len(store_codecs.WAYS) + len(store_codecs.LEVELS)


def test_names_in_memory(tmp_path: Path) -> None:
    for kind in ("folder", "tar", "array"):
        row = names_in_memory.measured(names_in_memory.write(kind, tmp_path, 300))
        assert all(row[step] > 0 for step in names_in_memory.STEPS)
        assert names_in_memory.as_table({kind: {"first": 0.0, **row}}, 300).row_count == 1
    assert {len(name) for name in names_in_memory.names(300)} == {40}


def test_verify_workers(capsys: pytest.CaptureFixture[str]) -> None:
    verify_workers.main(["--images", "300", "--channels", "2", "--on", "local:1", "--repeats", "1"])
    assert re.search(r"300 +│ +\d+\.\d+ │ +\d+\.\d+ │ +\d+\.\d+ │ +\d+\.\d ", capsys.readouterr().out)


def test_scale_on_paper() -> None:
    small, *_, large = scale.plans(images=1000, keep=0.03, row_group_size=256)
    assert (small.row_groups, small.shards) == (4, 20)
    assert large.kept == {1: 4, 4: 8, 8: 10, 16: 19, 32: 31, 64: 25, 128: 25, 256: 12}
    assert large.bytes_per_image[0] == pytest.approx(225.3 * 64)  # as many pixels as 64 of the quickstart
    assert scale_simulation.size(14_400_000_000_000) == "14.4 TB"


def test_scale_metadata(capsys: pytest.CaptureFixture[str]) -> None:
    scale.main(["--preset", "tiny16"])
    printed = capsys.readouterr().out
    assert "3,906,250" in printed  # row groups of a billion images
    assert "positions, scattered" in printed


def test_scale_simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_simulation, "in_own_process", lambda step, simulation: step(simulation))
    scale_simulation.main(["--rows", "5000", "--commits", "2", "--out", str(tmp_path)])
    rows = results(tmp_path, "scale").set_index("what")
    assert rows.loc["resume: pending()", "count"] == 20
    assert (rows.loc[["create the store", "publish", "all names"], "seconds"] > 0.0).all()
    assert rows.loc["verify", "note"].endswith(" 0 damages")


def test_what_a_task_costs() -> None:
    tasks, clock, processor, *memory = task_cost.measured(task_cost.ExecutorEngine(task_cost.AtOnce()), 50)
    assert tasks == "50"
    assert float(clock) > 0.0 <= float(processor)
    assert len(memory) == 2


@pytest.mark.parametrize("scenario", two_machines.SCENARIOS, ids=lambda scenario: scenario.what)
def test_two_machines_find_their_commands(scenario: two_machines.Scenario) -> None:
    lines = two_machines.commands(scenario.heading)
    assert {name for name, _ in lines} == {"head", "other"}
    assert sum(line.startswith("dask worker") for _, line in lines) == 2
    assert lines[-1][1].startswith("hvae-codec encode ")
    assert "out.zarr" in lines[-1][1]


def test_probe_refuses_a_run_of_other_images(tiny_run: Path, tmp_path: Path, cut_patches: Cut) -> None:
    with pytest.raises(UsageError, match="not trained on the train/ patches"):
        probe.given_model(tiny_run, as_source(cut_patches(4)))


def test_a_linear_probe_does_not_see_how_features_are_turned() -> None:
    """More features than images: turning them changes no score, and noise is not learned."""
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b", "c"], 20)
    features = rng.normal(size=(60, 90)) + 0.6 * rng.normal(size=(3, 90)).repeat(20, axis=0)
    direct = linear_probe.fit(features[::2], labels[::2])
    regression = direct[-1].best_estimator_
    plain = make_pipeline(*(clone(step) for _, step in direct.steps[:2]), clone(regression))
    plain.fit(features[::2], labels[::2])
    np.testing.assert_allclose(
        direct.predict_proba(features[1::2]), plain.predict_proba(features[1::2]), rtol=0.0, atol=0.01
    )
    shuffled = linear_probe.cross_validate(features, rng.permutation(labels), linear_probe.random_folds(labels, 3, 2))
    assert np.mean([score.accuracy for score in shuffled]) < 0.5


def test_bands_share_no_pixel() -> None:
    boxes = [Box(top, left, 8) for top in range(0, 60, 6) for left in (0, 6)] * 2
    labels = np.repeat(["one", "two"], 20)
    folds = probe.band_folds(labels, boxes, splits=5, repeats=2)
    assert sorted(np.concatenate([fold.test for fold in folds]).tolist()) == sorted([*range(40)] * 2)
    for fold in folds:
        for i in fold.test:
            for j in fold.training:
                apart = max(abs(boxes[i].top - boxes[j].top), abs(boxes[i].left - boxes[j].left)) >= 8
                assert apart or labels[i] != labels[j]


def test_standard_error_counts_what_folds_share() -> None:
    folds = [linear_probe.Fold(np.arange(80), np.arange(20))] * 10
    assert linear_probe.standard_error([0.5, 0.7] * 5, folds) == pytest.approx(
        np.sqrt((0.1 + 0.25) * np.var([0.5, 0.7] * 5, ddof=1))
    )


def test_a_step_is_measured_in_its_own_process(tiny_config: Config) -> None:
    cost = step_cost.measure(tiny_config, steps=1)
    assert cost.error == ""
    assert cost.parameters == sum(parameter.numel() for parameter in HVAE(tiny_config.model).parameters())
    assert cost.seconds > 0.0
    assert cost.mebibytes > 50.0


def test_gpu_check_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One part, as its process runs it, and the tables of what it found."""
    told = ["--small", "--device", "cpu", "--presets", "digits8", "--out", str(tmp_path), "--work", str(tmp_path)]
    found = {"seconds": {}}
    for part in ("same", "resume", "codes", "speed"):
        gpu_check.main([*told, "--part", part])
        found[part] = json.loads((tmp_path / f"{part}.json").read_text())
    assert gpu_tables.broken(found) == []
    assert found["same"]["digits8 fp32 recorded"]["most"] == 0
    assert "digits8 fp32 --deterministic: {" in capsys.readouterr().out
    assert "| digits8 fp32 --deterministic | 4 of 4 | yes |" in gpu_tables.markdown(found)
    assert found["codes"]["digits8 variate 3%"]["equal_filled_up"] == 1
    assert found["speed"]["digits8 b2 launched store"]["decode to png"] > 0
    found["same"]["digits8 TF32"] = {"error": "RuntimeError: no"}
    assert gpu_tables.broken(found) == ["same/digits8 TF32"]
    assert "broken: same/digits8 TF32" in gpu_tables.summary(found)


@pytest.mark.slow
def test_killed_workers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The smallest part of what `kill_workers.py` does: one driver, two kills."""

    def in_this_process(folder: Path, command: list[str]) -> None:
        monkeypatch.chdir(folder)
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 0

    monkeypatch.setattr(kill_workers, "finish", in_this_process)
    kill_workers.main(["--kills", "2", "--images", "48", "--only", "local:2, a worker"])
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "local:2" in line]
    assert row.startswith("| local:2, a worker | 2 |")
    assert row.endswith("| yes |")


def test_commands_that_are_stopped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A run and a store are made in this process; the command that is stopped has its own."""
    prepare = signals.prepare

    def prepare_here(base: Path, images: int) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(signals, "finish", finish_here)
            prepare(base, images)

    def finish_here(folder: Path, command: list[str]) -> None:
        monkeypatch.chdir(folder)
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 0

    monkeypatch.setattr(signals, "prepare", prepare_here)
    monkeypatch.setattr(signals, "SIGNALS", (signals.signal.SIGTERM,))
    signals.main(["--moments", "1", "--images", "24", "--commands", "decode"])
    out = capsys.readouterr().out
    assert "1 of 1" in out, out


def test_the_study_of_pruning_reports_what_was_measured(tmp_path: Path) -> None:
    """Averages over seeds, changes from each seed's control, and a plot, of runs that are there already."""
    trials = list(pruning.all_trials(2))
    assert len(trials) == 2 * len(pruning.SHARES) + len(pruning.CHANGED)
    for trial in trials:
        names = ["before", "after"] if "--set" in trial.options else ["before", "control", "after"]
        models = [(name, kept) for name in names for kept in ("what is left", "all latents")][:-1]
        rows = [
            {"model": model, "kept": kept, "kept_dims": 7, "dims": 700, "nelbo": 3.0 + number + trial.seed}
            | {"nelbo_change": 0.5, "nelbo_change_se": 0.1, "rate": 0.2, "distortion": 3.0, "psnr": 30.0, "bytes": 9.0}
            for number, (model, kept) in enumerate(models)
        ]
        path = tmp_path / "runs" / trial.folder / "analysis" / "pruning.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"about": {"reference": names[-2]}, "rows": rows}))
    options = argparse.Namespace(out=tmp_path, steps=450, jobs=1, model=tmp_path, data=tmp_path)
    documents = [pruning.prune(options, trial, {}) for trial in trials]
    rows = [row for each in zip(trials, documents, strict=True) for row in pruning.rows_of(*each)]
    pruning.report(options, pruning.against_controls(rows))
    table = (tmp_path / "pruning.md").read_text()
    assert "| keep 1%, trained | 7 | 7.5000 | +0.5000 ± 0.1000 (2 seeds: +0.5000, +0.5000) |" in table
    assert "| 4 times the rate, trained | 7 | 5.0000 | -1.0000 |" in table  # 5 - 6, the control of its seed
    assert (tmp_path / "pruning.png").stat().st_size > 1000


def test_the_way_from_a_published_vdvae_to_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """With a network of one block a resolution; what is imported is not run."""

    def run_here(_report: Path, arguments: list[str]) -> int:
        if arguments[0] not in ("sample-data", "import"):
            return 2048
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert not ended.value.code, arguments
        return 2048

    blocks = {"width": 8, "enc_blocks": "32x1,32d8,4d4,1x1", "dec_blocks": "1x1,4m1,32m4"}
    tiny = vdvae_import.MODELS["imagenet32"]
    tiny = tiny._replace(parameters=11_706, hparams={**tiny.hparams, **blocks})
    monkeypatch.setattr(vdvae_import, "run_command", run_here)
    monkeypatch.setattr(vdvae_import, "MODELS", {"imagenet32": tiny})
    monkeypatch.setattr(sample_data, "PHOTOGRAPHS", {"coffee": sample_data.PHOTOGRAPHS["coffee"]})
    monkeypatch.setattr(sample_data, "PATCHES", {"train": 6, "val": 3})
    vdvae_import.main(["--models", "imagenet32", "--images", "6", "--batch-size", "3", "--out", str(tmp_path)])
    rows = pd.read_csv(tmp_path / "vdvae_import.csv")
    assert rows["command"].str.split().str[0].tolist() == ["import", "analyze-kl", "encode", "encode", "decode"]
    assert rows["images"].tolist() == [0, 6, 6, 6, 6]
    assert "imagenet32-iter-1700000-model-ema.th: VDVAE, averaged weights of step 1,700,000" in capsys.readouterr().out
