"""What goes wrong in a long training is named, and leaves the last good state behind."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch

from hvae_codec.config import Config, with_settings
from hvae_codec.data.sources import ImageSource, as_source, open_images
from hvae_codec.errors import DataError, TrainingError
from hvae_codec.model.checkpoint import find_run, load_run_config
from hvae_codec.model.hvae import HVAE, Terms
from hvae_codec.train.loop import StepMetrics, TrainOptions, TrainResult, start_run, train
from hvae_codec.train.optimizer import FlatOptimizer
from hvae_codec.train.run_files import RunFiles
from photos import save_png

OPTIONS = TrainOptions(save_every=3, eval_every=100, log_every=2, validation_images=4)


@pytest.fixture
def files(tmp_path: Path, photo_patches) -> Path:
    """20 training and 4 held-out images as files."""
    for i, patch in enumerate(photo_patches):
        save_png(tmp_path / "data" / ("train" if i < 20 else "val") / f"{i:02d}.png", patch)
    return tmp_path / "data"


@pytest.fixture
def config(tiny_config) -> Config:
    """Without mirrored images, 8 steps."""
    return with_settings(tiny_config, ["train.horizontal_flip=false"])


def go(run: Path, config: Config, source: ImageSource, options=OPTIONS, *, resume=False, **callbacks) -> TrainResult:
    config = start_run(run, config, resume=resume)
    return train(run, config, source.split("train"), source.split("val"), options, **callbacks)


def tree(run: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "metrics.csv"}


@pytest.mark.slow
def test_an_image_whose_loss_is_not_finite_is_named(files: Path, config: Config, tmp_path: Path, monkeypatch):
    source = open_images(files, size=16, channels=3)
    bad = torch.from_numpy(source.split("train").read([7])[0])
    forward = HVAE.forward

    def spoilt(self: HVAE, images: torch.Tensor, *arguments: object) -> Terms:
        terms = forward(self, images, *arguments)
        hit = (images == bad).flatten(1).all(dim=1)
        return Terms(terms.nll * torch.where(hit, torch.nan, 1.0), terms.kl)

    monkeypatch.setattr(HVAE, "forward", spoilt)
    warnings: list[str] = []
    steps: list[int] = []
    result = go(
        tmp_path / "run",
        config,
        source,
        dataclasses.replace(OPTIONS, log_every=1),
        on_warning=warnings.append,
        on_step=lambda m: steps.append(m.step) if m.skipped else None,
    )
    assert steps == [int(w.split(":")[0].removeprefix("step ")) for w in warnings]
    assert result.skipped == len(steps) in (3, 4)  # 8 batches of 8 from 20 images
    assert all(f"the loss of the image {source.split('train').names[7]} is not" in warning for warning in warnings)
    warnings.clear()
    go(tmp_path / "seldom", config, source, dataclasses.replace(OPTIONS, log_every=100), on_warning=warnings.append)
    assert [warning.split(":")[0] for warning in warnings] == [f"step {steps[0]}"]


@pytest.mark.slow
def test_training_that_skips_for_ever_stops_with_advice_that_helps(config: Config, photo_patches, tmp_path: Path):
    source = as_source(photo_patches)
    config = with_settings(config, ["train.steps=5"])
    go(tmp_path / "run", config, source)
    options = TrainOptions(save_every=100, log_every=2, max_skips=3, validation_images=4)
    longer = with_settings(config, ["train.steps=30", "optimizer.skip_threshold=0.001"])
    with pytest.raises(TrainingError, match=r"last 3 updates .* step 8") as error:
        go(tmp_path / "run", longer, source, options, resume=True)
    advice = str(error.value)
    assert "optimizer.skip_threshold = 0.001; " in advice
    assert "--resume" in advice
    higher = advice.partition("--set optimizer.skip_threshold=")[2].split()[0]
    assert "a lower --set optimizer.learning_rate=0.01" in advice
    mended = with_settings(longer, ["train.steps=12", f"optimizer.skip_threshold={float(higher) * 100}"])
    result = go(tmp_path / "run", mended, source, options, resume=True)
    assert (result.step, result.steps_taken, result.skipped) == (12, 7, 0)


def test_gradients_that_are_never_finite_stop_training_too(config: Config, photo_patches, tmp_path: Path, monkeypatch):
    options = TrainOptions(log_every=2, max_skips=4)
    monkeypatch.setattr(FlatOptimizer, "zero_grad", lambda self: self.gradients.fill_(float("inf")))
    with pytest.raises(TrainingError, match=r"last 4 updates .* norm \((inf|nan)\) .* lower"):
        go(tmp_path / "run", config, as_source(photo_patches), options)


@pytest.mark.slow
def test_weights_that_are_not_finite_are_never_saved(config: Config, photo_patches, tmp_path: Path, monkeypatch):
    source = as_source(photo_patches)
    unbroken = go(tmp_path / "unbroken", config, source)
    step = FlatOptimizer.step

    def blown_up(self: FlatOptimizer, rate: float) -> tuple[torch.Tensor, torch.Tensor]:
        result = step(self, rate)
        steps.append(1)
        if len(steps) == 5:
            self.weights.data[0] = float("inf")
        return result

    steps: list[int] = []
    before: dict[str, bytes] = {}

    def look(m: StepMetrics) -> None:
        if m.step == 4:
            before.update(tree(tmp_path / "run"))

    with monkeypatch.context() as patch:
        patch.setattr(FlatOptimizer, "step", blown_up)
        with pytest.raises(TrainingError, match="step 6 the weights are not"):
            go(tmp_path / "run", config, source, on_step=look)
    assert tree(tmp_path / "run") == before
    again = go(tmp_path / "run", config, source)
    assert (again.steps_taken, again.validation) == (5, unbroken.validation)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["broken", "missing"])
def test_an_image_lost_in_mid_run_is_named_and_the_steps_so_far_are_kept(
    files: Path, config: Config, tmp_path: Path, monkeypatch, damage: str
):
    monkeypatch.setattr("hvae_codec.train.loop.CACHE_BYTES", 0)
    unbroken = go(tmp_path / "unbroken", config, open_images(files, size=16, channels=3))
    source = open_images(files, size=16, channels=3)
    path = files / source.split("train").names[3]
    content = path.read_bytes()
    path.write_bytes(content[:-40]) if damage == "broken" else os.remove(path)
    seen: list[int] = []
    with pytest.raises(DataError, match=f"{path} is broken"):
        go(tmp_path / "run", config, source, on_step=lambda m: seen.append(m.step))
    assert (tmp_path / "run" / "state" / f"step-{len(seen):09d}.json").exists()
    path.write_bytes(content)
    again = go(tmp_path / "run", config, open_images(files, size=16, channels=3))
    assert again.steps_taken == 8 - len(seen)
    assert again.validation == unbroken.validation


def test_other_images_stop_a_run_that_goes_on(config: Config, photo_patches, tmp_path: Path):
    go(tmp_path / "run", with_settings(config, ["train.steps=2"]), as_source(photo_patches))
    before = tree(tmp_path / "run")
    longer = with_settings(config, ["train.steps=3"])
    with pytest.raises(DataError, match=r"are not those that .* with"):
        go(tmp_path / "run", longer, as_source(photo_patches[:20]), resume=True)
    assert {name: before[name] for name in before if "config" not in name}.items() <= tree(tmp_path / "run").items()
    options = TrainOptions(other_data=True, validation_images=4)
    assert go(tmp_path / "run", longer, as_source(photo_patches[:20]), options, resume=True).steps_taken == 1


def test_a_resumed_run_that_diverges_at_once_keeps_its_configuration(config: Config, photo_patches, tmp_path: Path):
    source, run = as_source(photo_patches), tmp_path / "run"
    go(run, with_settings(config, ["train.steps=2"]), source)
    before = tree(run)
    wild = with_settings(config, ["train.steps=9", "optimizer.skip_threshold=1e-9"])
    with pytest.raises(TrainingError, match=f"--resume --out {run} and a higher"):
        go(run, wild, source, dataclasses.replace(OPTIONS, max_skips=2, save_every=9), resume=True)
    assert tree(run) == before
    go(run, with_settings(config, ["train.steps=4"]), source, resume=True)
    assert load_run_config(run).train.steps == 4


def test_a_new_run_whose_images_cannot_be_read_leaves_no_folder(files: Path, config: Config, tmp_path: Path):
    source = open_images(files, size=16, channels=3)
    path = files / source.split("train").names[3]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=f"{path} is broken"):
        go(tmp_path / "run", config, source)
    assert not (tmp_path / "run").exists()


def test_latest_moves_with_the_first_weights(config: Config, photo_patches, tmp_path: Path):
    latest, source = tmp_path / "latest", as_source(photo_patches)
    options = dataclasses.replace(OPTIONS, latest=latest)
    seen: list[bool] = []
    go(tmp_path / "run", config, source, options, on_step=lambda _: seen.append(latest.exists()))
    assert seen == [False] * 3 + [True] * 5
    assert find_run(latest) == tmp_path / "run"
    wild = with_settings(config, ["optimizer.skip_threshold=1e-9"])
    with pytest.raises(TrainingError):
        go(tmp_path / "wild", wild, source, dataclasses.replace(options, max_skips=2, save_every=9))
    assert find_run(latest) == tmp_path / "run"
    again: list[Path] = []
    longer = with_settings(config, ["train.steps=9"])
    go(tmp_path / "other", config, source, options)
    go(tmp_path / "run", longer, source, options, resume=True, on_start=lambda _: again.append(find_run(latest)))
    assert again == [tmp_path / "run"], "a run with weights is the last one as soon as it goes on"


def test_a_full_disk_saves_the_steps_so_far(config: Config, photo_patches, tmp_path: Path, monkeypatch):
    def full(files: RunFiles, metrics: StepMetrics) -> None:
        if metrics.step == 4:
            raise OSError(28, "No space left on device", "metrics.csv")

    monkeypatch.setattr(RunFiles, "add_step", full)
    with pytest.raises(OSError, match="No space left"):
        go(tmp_path / "run", config, as_source(photo_patches))
    assert (tmp_path / "run" / "state" / "step-000000004.json").exists()
