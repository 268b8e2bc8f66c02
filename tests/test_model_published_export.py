from __future__ import annotations

import configparser
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from safetensors.torch import save_file
from test_config import configs

from hvae_codec.config import Config, ModelConfig, OptimizerConfig, StageConfig, TrainConfig
from hvae_codec.errors import ConfigError, HvaeCodecError, ModelError, UsageError
from hvae_codec.model.checkpoint import WEIGHTS_FILE, load_model, load_weights, save_model, save_weights
from hvae_codec.model.hvae import HVAE
from hvae_codec.model.published import import_published
from hvae_codec.model.published_config import evaluate, read_published_config
from hvae_codec.model.published_config_text import changed_settings, published_config_text
from hvae_codec.model.published_export import export_published
from hvae_codec.presets import load_preset, preset_names
from hvae_codec_cli.app import main

GOLDEN = Path(__file__).parent / "golden"
NAMES = ["symmetric", "asymmetric"]


def published(name: str) -> tuple[Path, Path]:
    return GOLDEN / name / f"checkpoints-{name}", GOLDEN / name / f"hparams-{name}.cfg"


@pytest.fixture(params=NAMES)
def imported(request, tmp_path: Path) -> Path:
    """A run that was imported from a published checkpoint; its folder has the checkpoint's name."""
    config, weights = import_published(*published(request.param))
    save_model(tmp_path / request.param, config, weights)
    return tmp_path / request.param


# --- round trips


def test_an_exported_run_is_the_published_checkpoint(imported: Path, tmp_path: Path):
    name = imported.name
    exported = export_published(imported, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"checkpoints-{name}", f"hparams-{name}.cfg"]
    original = torch.load(published(name)[0], weights_only=True)
    written = torch.load(exported.checkpoint, weights_only=True)
    assert written.keys() == original.keys()
    for key in ("ema_model_state_dict", "model_state_dict"):
        assert written[key].keys() == original[key].keys()
        for tensor, expected in zip(written[key].values(), original["ema_model_state_dict"].values(), strict=True):
            assert tensor.dtype == expected.dtype
        assert all(torch.equal(written[key][n], original["ema_model_state_dict"][n]) for n in written[key])
    assert written["optimizer_state_dict"] is None
    assert written["scheduler_state_dict"] is None
    assert written["global_step"] == 0


def test_import_export_import_is_exact(imported: Path, tmp_path: Path):
    exported = export_published(imported, tmp_path / "out")
    first, second = (
        import_published(*published(imported.name)),
        import_published(exported.checkpoint, exported.config_file),
    )
    assert second[0] == first[0]
    assert second[1].keys() == first[1].keys()
    assert all(torch.equal(second[1][name], first[1][name]) for name in first[1])
    again = tmp_path / "again" / imported.name
    save_model(again, *second)
    export_published(again, tmp_path / "out2")
    for path in (exported.checkpoint, exported.config_file):
        assert (tmp_path / "out2" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_the_cfg_has_the_published_keys_and_values(name: str):
    theirs, ours = (configparser.ConfigParser(interpolation=None) for _ in range(2))
    theirs.read_string(published(name)[1].read_text())
    ours.read_string(published_config_text(read_published_config(published(name)[1]), name))
    assert ours.sections() == theirs.sections()
    for section in theirs.sections():
        assert set(ours[section]) == set(theirs[section])
        if section in ("data", "model", "loss", "optimizer", "train"):
            kept = {key for key in theirs[section] if not key.startswith(("logging", "checkpoint_and"))}
            assert {k: evaluate(ours[section][k]) for k in kept} == {k: evaluate(theirs[section][k]) for k in kept}


@pytest.mark.parametrize("name", [name for name in preset_names() if not name.endswith(("vdvae", "digits8"))])
def test_presets_come_back(name: str, tmp_path: Path):
    config = load_preset(name)
    (tmp_path / "preset.cfg").write_text(published_config_text(config, name))
    read = read_published_config(tmp_path / "preset.cfg")
    assert read == dataclasses.replace(config, model=dataclasses.replace(config.model, bins="published"))


@given(configs())
def test_any_configuration_comes_back(tmp_path_factory: pytest.TempPathFactory, config: Config):
    """But for what the layout cannot say: whose bins, and whether equal stages are one."""
    model = dataclasses.replace(config.model, channels=3)
    path = tmp_path_factory.getbasetemp() / "any.cfg"
    path.write_text(published_config_text(dataclasses.replace(config, model=model), "any"))
    read = read_published_config(path)
    assert read.model.groups == model.groups
    assert read == dataclasses.replace(
        config, model=dataclasses.replace(model, bins="published", stages=read.model.stages)
    )


def test_a_trained_run_comes_back(tiny_run: Path, tiny_config: Config, tmp_path: Path, photo_patches):
    exported = export_published(tiny_run, tmp_path / "out")
    config, weights = import_published(exported.checkpoint, exported.config_file)
    save_model(tmp_path / "back", config, weights)
    images = torch.from_numpy(photo_patches[:2])
    assert torch.equal(load_model(tmp_path / "back").reconstruct(images), load_model(tiny_run).reconstruct(images))
    assert config.model == dataclasses.replace(tiny_config.model, bins="published")
    assert config.optimizer == tiny_config.optimizer
    assert not any("model." in note for note in exported.notes)


def test_binarised_images(tmp_path: Path):
    model = ModelConfig(32, (StageConfig(32, 4, 2), StageConfig(8, 4, 2)), channels=1, output="bernoulli", mixtures=1)
    config = Config(dataclasses.replace(model, bins="published"))
    save_model(tmp_path / "run", config, HVAE(model).state_dict())
    exported = export_published(tmp_path / "run", tmp_path / "out")
    assert import_published(exported.checkpoint, exported.config_file)[0] == config


def test_the_command(imported: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = imported.name

    def call(*arguments: str) -> int:
        with pytest.raises(SystemExit) as caught:
            main(list(arguments))
        return int(caught.value.code or 0)

    assert call("export", name, "--out", "out") == 0
    assert f"out/checkpoints-{name} and hparams-{name}.cfg: " in capsys.readouterr().out
    again = ("import", f"out/checkpoints-{name}", "--config", f"out/hparams-{name}.cfg", "--out", "runs/back")
    assert call(*again) == 0
    assert load_weights(Path("runs/back") / WEIGHTS_FILE).keys() == load_weights(imported / WEIGHTS_FILE).keys()
    assert call("export", "--out", "latest") == 0  # runs/latest, which the import has set
    assert Path("latest/checkpoints-back").is_file()
    capsys.readouterr()
    assert call("export", name, "--out", "out") == 2
    assert capsys.readouterr().err == "hvae-codec: out exists; give another --out\n"


# --- raw weights


def state_of(run: Path, step: int, weights: dict[str, torch.Tensor]) -> Path:
    path = run / "state" / f"step-{step:09d}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file({f"weights.{name}": tensor for name, tensor in weights.items()}, path)
    path.with_suffix(".json").write_text(json.dumps({"step": step}))
    return path


def test_raw_weights_come_from_the_newest_state_that_can_be_read(imported: Path, tmp_path: Path):
    averaged = load_weights(imported / WEIGHTS_FILE)
    raw = {name: tensor + 1 for name, tensor in averaged.items()}
    state_of(imported, 5, {name: tensor + 2 for name, tensor in averaged.items()})
    state_of(imported, 10, raw)
    damaged = state_of(imported, 15, raw)
    damaged.write_bytes(damaged.read_bytes()[:1000])
    state_of(imported, 20, raw).with_suffix(".json").unlink()
    exported = export_published(imported, tmp_path / "out")
    assert not any("averaged" in note for note in exported.notes)
    assert torch.load(exported.checkpoint, weights_only=True)["global_step"] == 10
    for weights, expected in (("raw", raw), ("ema", averaged)):
        own = import_published(exported.checkpoint, exported.config_file, weights)[1]
        assert all(torch.equal(own[name], expected[name]) for name in expected)


def test_without_a_state_the_averaged_weights_stand_for_both(imported: Path, tmp_path: Path):
    exported = export_published(imported, tmp_path / "out")
    assert any("model_state_dict holds its averaged weights too" in note for note in exported.notes)


# --- what is refused


def refused(kind: type[HvaeCodecError], *args: Path) -> str:
    with pytest.raises(kind) as caught:
        export_published(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resample": "plain"}, "model.resample is plain; published models pool and unpool with convolutions"),
        ({"channels": 1}, "model.channels is 1; the published models' mixture has three colours"),
    ],
)
def test_designs_that_the_layout_cannot_express(options: dict, message: str, tmp_path: Path):
    model = ModelConfig(8, (StageConfig(8, 4, 2), StageConfig(4, 4, 2)), mixtures=1, **options)
    save_model(tmp_path / "run", Config(model), HVAE(model).state_dict())
    assert message in refused(ConfigError, tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_the_layout_does_not_carry_is_named():
    config = Config(ModelConfig(8, (StageConfig(8, 4, 2),), bits=5), train=TrainConfig(steps=3))
    read = dataclasses.replace(config, model=dataclasses.replace(config.model, bins="published"))
    assert changed_settings(config, read) == ["model.bins is exact here, and published when imported again"]
    assert changed_settings(config, config) == []
    eight = dataclasses.replace(config, model=dataclasses.replace(config.model, bits=8))
    read = dataclasses.replace(eight, model=dataclasses.replace(eight.model, bins="published"))
    assert changed_settings(eight, read) == []  # both bins are the same there
    other = dataclasses.replace(config, optimizer=OptimizerConfig(clip_norm=3.0))
    assert changed_settings(config, other) == ["optimizer.clip_norm is None here, and 3.0 when imported again"]


def test_nothing_is_overwritten(imported: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    assert refused(UsageError, imported, tmp_path / "out") == f"{tmp_path / 'out'} exists; give another --out"
    (tmp_path / "file").write_text("mine")
    refused(UsageError, imported, tmp_path / "file")
    assert (tmp_path / "file").read_text() == (tmp_path / "out" / "mine").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    export_published(imported, tmp_path / "empty")


def test_damaged_runs(imported: Path, tmp_path: Path):
    assert "there is no run at" in refused(ModelError, tmp_path / "nowhere", tmp_path / "out")
    weights = load_weights(imported / WEIGHTS_FILE)
    weights["top_down.start"][:] = float("nan")
    save_weights(imported / WEIGHTS_FILE, weights)
    assert "numbers that are not finite" in refused(ModelError, imported, tmp_path / "out")
    del weights["top_down.start"]
    save_weights(imported / WEIGHTS_FILE, weights)
    assert "top_down.start" in refused(ModelError, imported, tmp_path / "out")
    assert not (tmp_path / "out").exists()
