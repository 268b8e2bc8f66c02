from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from hvae_codec.config import with_settings
from hvae_codec.data.sources import as_source, open_images
from hvae_codec.errors import DataError, ModelError
from hvae_codec.model.checkpoint import load_run_config, save_config, save_model
from hvae_codec.model.hvae import HVAE
from hvae_codec.train.run_folder import (
    Origin,
    RunLock,
    begun_preprocessing,
    check_origin,
    check_same,
    read_origin,
    save_run,
    start_run,
    unfinished_sentence,
)
from hvae_codec.train.state import STATE_FOLDER


@pytest.fixture
def run(tiny_config, tmp_path: Path) -> Path:
    save_config(tmp_path / "run", start_run(tmp_path / "run", tiny_config, resume=False))
    return tmp_path / "run"


def add_state(run: Path, step: int) -> None:
    (run / "state").mkdir(exist_ok=True)
    for ending in ("safetensors", "json"):
        (run / "state" / f"step-{step:09d}.{ending}").touch()


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_command_again_goes_on(tiny_config, run: Path):
    before = tree(run)
    assert start_run(run, tiny_config, resume=False) == load_run_config(run)
    assert tree(run) == before


@pytest.mark.parametrize(
    ("setting", "difference"),
    [
        ("train.steps=99", "train.steps = 8, not 99; .* --resume --steps 99"),
        ("optimizer.clip_norm=2", r"optimizer.clip_norm = None, not 2.0; .* --resume --set optimizer.clip_norm=2.0"),
        ("train.accumulate=4", "train.accumulate = 1, not 4; .* --resume --set train.accumulate=4"),
        ("stage8.width=10", "model.stages.1.width = 8, not 10; give another --out"),
        ("train.batch_size=4", "train.batch_size = 8, not 4; give another --out"),
        ("stage16.kept=[2]", r"model.stages.0.kept \(number\) = None, not 1; give another --out"),
    ],
)
def test_another_configuration_is_refused(tiny_config, run: Path, setting: str, difference: str):
    before = tree(run)
    with pytest.raises(ModelError, match=difference):
        start_run(run, with_settings(tiny_config, [setting]), resume=False)
    assert tree(run) == before


@pytest.mark.parametrize(("setting", "difference"), [("[1]", r"kept.0 = 2, not 1;"), ("none", "kept.* = 1, not None;")])
def test_a_slim_run_stays_as_slim(tiny_config, tmp_path: Path, setting: str, difference: str):
    save_config(
        tmp_path / "run", start_run(tmp_path / "run", with_settings(tiny_config, ["stage16.kept=[2]"]), resume=False)
    )
    with pytest.raises(ModelError, match=f"{difference} give another --out"):
        start_run(tmp_path / "run", with_settings(tiny_config, [f"stage16.kept={setting}"]), resume=True)


def test_another_number_of_stages_is_refused(tiny_config, run: Path):
    model = dataclasses.replace(tiny_config.model, stages=tiny_config.model.stages[:2])
    with pytest.raises(ModelError, match=r"model.stages \(number\) = 3, not 2"):
        start_run(run, dataclasses.replace(tiny_config, model=model), resume=False)


def test_a_resumed_run_may_have_another_length_and_another_rate(tiny_config, run: Path):
    before = tree(run)
    other = with_settings(tiny_config, ["train.steps=99", "optimizer.learning_rate=0.5", "loss.anneal_steps=7"])
    config = start_run(run, other, resume=True)
    assert tree(run) == before
    assert (config.train.steps, config.optimizer.learning_rate, config.loss.anneal_steps) == (99, 0.5, 7)


@pytest.mark.parametrize("setting", ["train.batch_size=2", "stage.width=10", "optimizer.name=adam"])
def test_a_resumed_run_keeps_what_its_states_depend_on(tiny_config, run: Path, setting: str):
    with pytest.raises(ModelError, match="give another --out"):
        start_run(run, with_settings(tiny_config, [setting]), resume=True)


def test_precision_stays_what_auto_became(tiny_config, run: Path):
    became = load_run_config(run).train.precision
    assert became in ("fp32", "bf16")
    for resume in (False, True):
        assert start_run(run, tiny_config, resume=resume).train.precision == became
    other = "bf16" if became == "fp32" else "fp32"
    assert (
        start_run(run, with_settings(tiny_config, [f"train.precision={other}"]), resume=True).train.precision == other
    )


def test_what_is_no_run_is_not_touched(tiny_config, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ModelError, match=r"mine .*; give another --out"):
        start_run(tmp_path / "mine", tiny_config, resume=False)
    with pytest.raises(ModelError, match=r"thesis.tex .*a file"):
        start_run(tmp_path / "mine" / "thesis.tex", tiny_config, resume=False)
    assert tree(tmp_path / "mine") == {"thesis.tex": b"x"}


def test_a_model_without_a_state_is_not_trained_over(tiny_config, tmp_path: Path):
    """Such as an imported one: training in its folder would begin anew and replace its weights."""
    run = tmp_path / "imported"
    save_model(run, tiny_config, HVAE(tiny_config.model).state_dict())
    for resume in (False, True):
        with pytest.raises(ModelError, match="model without a training state"):
            start_run(run, tiny_config, resume=resume)


def test_only_a_run_can_be_resumed(tiny_config, tmp_path: Path):
    with pytest.raises(ModelError, match=r"no run at .*; leave out --resume"):
        start_run(tmp_path / "run", tiny_config, resume=True)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_a_kill_left_empty_is_begun(tiny_config, tmp_path: Path):
    (tmp_path / "run").mkdir()
    for name in ("config.json.partial", ".lock"):
        (tmp_path / "run" / name).write_text('{"mod')
    start_run(tmp_path / "run", tiny_config, resume=False)


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_does_not_become_shorter_than_it_is(tiny_config, run: Path, resume: bool):
    add_state(run, 6)
    with pytest.raises(ModelError, match=r"has 6 steps, .* = 5; give --steps above 6"):
        start_run(run, with_settings(tiny_config, ["train.steps=5"]), resume=resume)
    assert start_run(run, with_settings(tiny_config, ["train.steps=6"]), resume=True).train.steps == 6


def test_a_run_goes_on_with_less_memory(tiny_config, run: Path):
    smaller = with_settings(tiny_config, ["train.accumulate=4", "train.checkpoint_activations=true"])
    assert start_run(run, smaller, resume=True).train.accumulate == 4
    saved = load_run_config(run)
    check_same(run, dataclasses.replace(saved, train=dataclasses.replace(saved.train, accumulate=4)), seed=0)
    with pytest.raises(ModelError, match=r"begun with train.batch_size = 8, not 16"):
        check_same(run, with_settings(saved, ["train.batch_size=16"]), seed=0)


def test_the_seed_is_kept_and_another_is_refused(tiny_config, run: Path, photo_patches):
    source = as_source(photo_patches)
    save_run(run, tiny_config, check_origin(run, Origin.of(5, source, source), other_data=False))
    assert check_origin(run, Origin.of(0, source, source), other_data=False).seed == 5
    start_run(run, tiny_config, resume=False, seed=5)
    with pytest.raises(ModelError, match="was begun with seed 5, not 6"):
        start_run(run, tiny_config, resume=False, seed=6)


def test_other_images_are_refused_unless_allowed(tiny_config, run: Path, photo_patches):
    first, other = as_source(photo_patches), as_source(photo_patches[:20])
    save_run(run, tiny_config, Origin.of(0, first, first))
    add_state(run, 1)
    with pytest.raises(DataError, match="training images are not those"):
        check_origin(run, Origin.of(0, other, first), other_data=False)
    with pytest.raises(DataError, match="held-out images are not those"):
        check_origin(run, Origin.of(0, first, other), other_data=False)
    assert read_origin(run) == Origin.of(0, first, first)
    save_run(run, tiny_config, check_origin(run, Origin.of(0, other, other), other_data=True))
    assert read_origin(run) == Origin.of(0, other, other)


def test_other_preprocessing_is_refused(tiny_config, run: Path, photo_patches):
    np.save(run.parent / "x.npy", photo_patches.transpose(0, 2, 3, 1))
    first, same, other = (
        open_images(run.parent / "x.npy", size=8, channels=3, **options)
        for options in ({"crop": "0,0,8,8"}, {"crop": "0,0,8,8", "max_pixels": 10**9}, {})
    )
    assert begun_preprocessing(run) is None
    save_run(run, tiny_config, Origin.of(0, first, first))
    add_state(run, 1)
    assert begun_preprocessing(run) == first.preprocessing
    with pytest.raises(DataError, match=r"was begun with --crop 0,0,8,8, and .* crop='centre'"):
        check_origin(run, Origin.of(0, other, other), other_data=False)
    save_run(run, tiny_config, check_origin(run, Origin.of(0, same, same), other_data=False))
    assert begun_preprocessing(run) == same.preprocessing
    save_run(run, tiny_config, Origin.of(0, other, other))
    assert "preprocessing" not in (run / "origin.json").read_text()


@pytest.mark.parametrize("states", [[], [0]])
def test_a_run_without_a_step_takes_other_images_but_keeps_its_seed(
    tiny_config, run: Path, photo_patches, states: list[int]
):
    """So that a training that a broken image ended works with --skip-unusable."""
    first, other = as_source(photo_patches), as_source(photo_patches[:20])
    save_run(run, tiny_config, Origin.of(5, first, first))
    for step in states:
        add_state(run, step)
    assert check_origin(run, Origin.of(0, other, first), other_data=False) == Origin.of(5, other, first)


def test_a_run_is_trained_by_one_at_a_time(run: Path):
    first, second = RunLock(run), RunLock(run)
    first.acquire()
    with pytest.raises(ModelError, match=r"run is .* by another process"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


def test_a_folder_in_which_nothing_was_begun_goes_with_its_lock(tmp_path: Path):
    for name in ("new", "mine"):
        lock = RunLock(tmp_path / name)
        lock.acquire()
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / "mine" / "thesis.tex").touch()
        lock.release()
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["mine", "mine/thesis.tex"]


def test_a_run_from_before_there_was_a_choice_stays_in_float32(tiny_config, tmp_path: Path, monkeypatch):
    run = tmp_path / "run"
    save_config(run, with_settings(tiny_config, ["train.precision=auto"]))
    add_state(run, 1)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert start_run(run, with_settings(tiny_config, ["train.precision=auto"]), resume=True).train.precision == "fp32"


def test_an_unfinished_run_is_told_from_a_finished_or_imported_one(run: Path):
    assert unfinished_sentence(run) == ""  # no state, as of an imported run
    (run / STATE_FOLDER).mkdir()
    for step, said in ((3, True), (7, True), (8, False)):
        for ending in ("safetensors", "json"):
            (run / STATE_FOLDER / f"step-{step:09d}.{ending}").touch()
        (run / STATE_FOLDER / "step-000000009.safetensors").touch()  # not complete: its counters come last
        assert (f"{run} has {step} of 8 steps" in unfinished_sentence(run)) == said


def test_folders_of_a_run_that_was_not_begun_go_but_not_those_of_the_user(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    for run in (tmp_path / "mine", tmp_path / "deep" / "runs" / "a"):
        lock = RunLock(run)
        lock.acquire()
        assert run.is_dir()
        lock.release()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
