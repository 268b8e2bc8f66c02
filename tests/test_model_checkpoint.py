from __future__ import annotations

import dataclasses
import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hvae_codec.config import CONFIG_FILE, with_settings
from hvae_codec.errors import ConfigError, HvaeCodecError, ModelError
from hvae_codec.model.checkpoint import (
    WEIGHTS_FILE,
    fill_model,
    find_run,
    load_model,
    load_run_config,
    load_weights,
    model_hash,
    point_latest,
    save_config,
    save_model,
    save_weights,
)
from hvae_codec.model.hvae import HVAE
from hvae_codec.storage.files import write_atomically
from hvae_codec.train.optimizer import FlatOptimizer


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_run, tmp_path / "runs" / "a")
    return tmp_path / "runs" / "a"


def refused(call, *args) -> str:
    with pytest.raises(HvaeCodecError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- round trip


def test_a_run_comes_back_exactly(tiny_config, tmp_path: Path, photo_patches):
    model = HVAE(tiny_config.model)
    save_model(tmp_path / "new" / "run", tiny_config, model.state_dict())
    loaded = load_model(tmp_path / "new" / "run")
    assert load_run_config(tmp_path / "new" / "run") == tiny_config
    assert loaded.config == tiny_config.model
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert model_hash(loaded) == model_hash(model)
    assert loaded.run == tmp_path / "new" / "run"
    images = torch.from_numpy(photo_patches[:2])
    assert torch.equal(loaded.reconstruct(images), model.to(memory_format=torch.channels_last).reconstruct(images))


def test_loaded_models_are_for_use_not_for_training(tiny_model):
    assert not tiny_model.training
    assert not any(p.requires_grad for p in tiny_model.parameters())


def test_only_the_two_files_are_left(tiny_config, tmp_path: Path):
    save_model(tmp_path / "run", tiny_config, HVAE(tiny_config.model).state_dict())
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]


def test_replacing_keeps_the_old_content_until_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x"
    write_atomically(path, b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"


# --- hash


def test_hash_depends_on_every_weight_and_on_the_configuration(tiny_config, tiny_model):
    model = HVAE(tiny_config.model)
    model.load_state_dict(tiny_model.state_dict())
    before = model_hash(model)
    assert before == model_hash(tiny_model)
    for parameter in model.parameters():
        with torch.no_grad():
            old = parameter.flatten()[-1].item()
            parameter.view(-1)[-1] = old + 1.0
            assert model_hash(model) != before
            parameter.view(-1)[-1] = old
    assert model_hash(model) == before
    other = HVAE(dataclasses.replace(tiny_config.model, posterior_beta=1.0))
    other.load_state_dict(tiny_model.state_dict())
    assert model_hash(other) != before


def test_hash_does_not_depend_on_how_training_went(tiny_config, tiny_model, tmp_path: Path):
    changed = with_settings(tiny_config, ["train.steps=99"])
    save_model(tmp_path / "run", changed, tiny_model.state_dict())
    assert model_hash(load_model(tmp_path / "run")) == model_hash(tiny_model)


# --- damage


def test_missing_weights(run: Path):
    (run / WEIGHTS_FILE).unlink()
    assert WEIGHTS_FILE in refused(load_model, run)


@pytest.mark.parametrize("damage", ["cut", "empty", "header", "text"])
def test_damaged_weights(run: Path, damage: str):
    path = run / WEIGHTS_FILE
    raw = path.read_bytes()
    contents = {"cut": raw[:-10], "empty": b"", "header": b"\xff" * 8 + raw[8:], "text": b"not weights at all"}
    path.write_bytes(contents[damage])
    message = refused(load_model, run)
    assert "cannot read the weights" in message
    assert str(path) in message


def test_wrong_tensors_are_named(run: Path, tiny_config):
    path = run / WEIGHTS_FILE
    weights = load_file(path)
    name = "top_down.start"
    changes = {
        f"lacks the tensor {name}": {k: v for k, v in weights.items() if k != name},
        "has a tensor extra": {**weights, "extra": torch.zeros(1)},
        f"the tensor {name} is [1, 12, 3, 3], its configuration says [1, 12, 2, 2]": {
            **weights,
            name: torch.zeros(1, 12, 3, 3),
        },
    }
    for message, changed in changes.items():
        save_file(changed, path)
        assert message in refused(load_model, run)
        with pytest.raises(ModelError):
            fill_model(HVAE(tiny_config.model), changed, path)


def test_weights_of_another_configuration(run: Path, tiny_config):
    save_config(run, with_settings(tiny_config, ["stage16.width=10"]))
    assert "its configuration" in refused(load_model, run)


def test_damaged_configuration(run: Path):
    (run / CONFIG_FILE).write_text("{")
    assert CONFIG_FILE in refused(load_model, run)
    data = json.loads("{}")
    (run / CONFIG_FILE).write_text(json.dumps(data))
    with pytest.raises(ConfigError, match="model is missing"):
        load_model(run)


def test_load_weights_names_the_path(tmp_path: Path):
    assert str(tmp_path / "w") in refused(load_weights, tmp_path / "w")


def test_weights_that_may_not_be_read_are_no_missing_ones(run: Path, monkeypatch: pytest.MonkeyPatch):
    def denied(path: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", denied)
    with pytest.raises(PermissionError, match=r"model\.safetensors"):
        load_weights(run / "model.safetensors")


# --- finding runs


def test_latest_points_to_the_last_run(run: Path):
    point_latest(run.parent / "latest", run)
    assert find_run(run.parent / "latest") == run
    shutil.copytree(run, run.parent / "b")
    point_latest(run.parent / "latest", run.parent / "b")
    assert find_run(str(run.parent / "latest")) == run.parent / "b"
    assert load_model(run.parent / "latest").run == run.parent / "b"


def test_latest_is_a_file_where_links_are_refused(run: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError("links are not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    point_latest(run.parent / "latest", run)
    assert not (run.parent / "latest").is_symlink()
    assert find_run(run.parent / "latest") == run


def test_runs_move_with_their_folder(run: Path, tmp_path: Path):
    point_latest(run.parent / "latest", run)
    shutil.move(run.parent, tmp_path / "moved")
    assert find_run(tmp_path / "moved" / "latest") == tmp_path / "moved" / "a"


def test_latest_may_lie_elsewhere_and_leaves_other_files_alone(run: Path, tmp_path: Path):
    latest = tmp_path / "elsewhere" / "runs" / "latest"
    point_latest(latest, run)
    assert find_run(latest).resolve() == run.resolve()
    latest.unlink()
    latest.write_text("notes of mine")
    assert "is in the way" in refused(point_latest, latest, run)
    assert latest.read_text() == "notes of mine"
    latest.unlink()
    latest.mkdir()
    assert "is in the way" in refused(point_latest, latest, run)
    assert [path.name for path in latest.parent.iterdir()] == ["latest"]


def test_runs_that_are_not_there(tmp_path: Path):
    assert "check the path" in refused(find_run, tmp_path / "nothing")
    assert "train one first" in refused(find_run, tmp_path / "latest")
    (tmp_path / "folder").mkdir()
    assert f"it holds no {CONFIG_FILE}" in refused(find_run, tmp_path / "folder")
    (tmp_path / "file").write_text("x")
    assert "is not a run" in refused(find_run, tmp_path / "file")


def test_a_latest_whose_run_is_gone(run: Path):
    point_latest(run.parent / "latest", run)
    shutil.rmtree(run)
    message = refused(find_run, run.parent / "latest")
    assert f"{run.parent / 'latest'} points to {run}, which is not there; give --model" in message


def test_the_hash_follows_an_optimiser_that_owns_the_weights(tiny_config):
    model = HVAE(tiny_config.model)
    optimizer = FlatOptimizer(model, tiny_config.optimizer, 0.9)
    before = model_hash(model)
    optimizer.gradients.fill_(1.0)
    optimizer.step(0.1)
    assert model_hash(model) != before


def test_others_may_read_weights_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o022)
    (tmp_path / "model.safetensors.partial").touch(0o600)  # left by a kill
    try:
        save_weights(tmp_path / "model.safetensors", {"a": torch.zeros(1)})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model.safetensors").stat().st_mode) == 0o644
