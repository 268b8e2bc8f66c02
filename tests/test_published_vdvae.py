"""The command `import` on checkpoints of published VDVAEs: what it writes computes the published numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hvae_codec import open_store
from hvae_codec.config import load_config
from hvae_codec.model.checkpoint import find_run, load_model
from hvae_codec.presets import load_preset, preset_names
from hvae_codec.published.record import read_record
from hvae_codec.published.vdvae import VDVAE_PRESETS
from hvae_codec_cli.app import main
from photos import save_png

GOLDEN = Path(__file__).parent / "golden" / "vdvae"
SMALL = GOLDEN / "small_rgb" / "iter-1000-model-ema.th"
LOWBIT = GOLDEN / "lowbit_small" / "iter-1000-model-ema.th"


@pytest.fixture
def run(tmp_path: Path, monkeypatch, capsys) -> Callable[..., tuple[int, str]]:
    """`run(arguments)`: exit code and what the command prints, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return int(ended.value.code or 0), " ".join((out + err).split())

    return call


@pytest.fixture
def refused(run) -> Callable[..., str]:
    """`refused(code, checkpoint, options)`: the sentence of an import that ends with `code` and writes no run."""

    def call(code: int, checkpoint: Path, *options: object) -> str:
        found, sentence = run("import", checkpoint, "--out", "runs/refused", *options)
        assert found == code, sentence
        assert sentence.startswith("hvae-codec: ")
        assert not Path("runs/refused").exists()
        return sentence

    return call


def changed(path: Path, change: Callable[[dict], object]) -> Path:
    """A copy of the small checkpoint with other tensors, its log beside it."""
    state = torch.load(SMALL, map_location="cpu", weights_only=True)
    change(state)
    torch.save(state, path / "iter-1000-model-ema.th")
    shutil.copy(SMALL.with_name("iter-1000-log.jsonl"), path)
    return path / "iter-1000-model-ema.th"


@pytest.mark.parametrize("folder", ["small_rgb", "lowbit_small"])
@pytest.mark.parametrize(("kind", "weights", "key"), [("-ema", "averaged", "mean"), ("", "raw", "raw/mean")])
def test_an_imported_run_computes_the_published_bound(run, folder: str, kind: str, weights: str, key: str):
    code, out = run("import", GOLDEN / folder / f"iter-1000-model{kind}.th", "--out", "runs/a")
    assert code == 0, out
    assert f"{weights} weights of step 1,000, hyper-parameters of iter-1000-log.jsonl" in out
    assert find_run("runs/latest") == Path("runs/a")
    golden = np.load(GOLDEN / folder / "golden.npz")
    model = load_model("runs/a")
    images = torch.from_numpy(golden["images"]).permute(0, 3, 1, 2).contiguous()
    terms = model(images, lambda group: torch.zeros_like(group.prior.mean))
    for found, name in ((terms.kl, "kl"), (terms.nll / model.config.image_dims, "nll")):
        expected = golden[f"{key}/{name}"]
        assert abs(found.numpy() - expected).max() <= 1e-5 * abs(expected).max()


def test_the_configuration_and_the_record(run):
    assert run("import", SMALL, "--out", "a")[0] == 0
    config = load_config(Path("a/config.json"))
    assert (config.train.steps, config.train.batch_size, config.optimizer.weight_decay) == (1000, 8, 0.01)
    record = read_record(Path("a"))
    assert (record.family, record.file, record.weights, record.step) == ("VDVAE", SMALL.name, "ema", 1000)
    assert (record.bytes, record.sha256[:8]) == (SMALL.stat().st_size, "5624cc55")
    assert "VDVAE, averaged weights of step 1,000" in run("info", "a")[1]
    assert json.loads(run("info", "a", "--json")[1])["imported"]["sha256"] == record.sha256


def test_bins_of_few_bits(run):
    code, out = run("import", LOWBIT, "--out", "published")
    assert code == 0
    assert "at 5 bits they overlap" in out
    assert load_config(Path("published/config.json")).model.bins == "published"
    out = run("import", LOWBIT, "--out", "exact", "--bins", "exact")[1]
    assert "overlap" not in out
    assert load_config(Path("exact/config.json")).model.bins == "exact"
    assert "overlap" not in run("import", SMALL, "--out", "8bits")[1]


def test_a_log_from_elsewhere(run, refused, tmp_path: Path):
    alone = shutil.copy(SMALL, tmp_path / "mine.th")
    assert "give the log that was published with it (--log" in refused(2, alone)
    code, out = run("import", alone, "--log", SMALL.with_name("iter-1000-log.jsonl"), "--out", "a")
    assert code == 0
    assert "averaged weights, hyper-parameters of iter-1000-log.jsonl" in out  # no step in the name
    message = refused(1, alone, "--log", LOWBIT.with_name("iter-1000-log.jsonl"))
    assert f"{alone} does not fit the hyper-parameters of iter-1000-log.jsonl" in message
    assert "give the log or preset of its own training" in message
    assert "there is no log nowhere.jsonl" in refused(1, alone, "--log", "nowhere.jsonl")


def test_a_preset_in_place_of_the_log(run, monkeypatch):
    """The preset is that of another size; the true ones take seconds, and are imported by benchmarks."""
    run("import", SMALL, "--out", "a")
    config = load_config(Path("a/config.json"))
    monkeypatch.setattr("hvae_codec.published.vdvae.load_preset", lambda name: {"imagenet32_vdvae": config}[name])
    code, out = run("import", SMALL, "--preset", "imagenet32_vdvae", "--out", "b")
    assert code == 0
    assert "hyper-parameters of the preset imagenet32_vdvae" in out
    assert "iter-1000-log.jsonl, which lies beside the checkpoint, was not read" in out
    assert Path("a/model.safetensors").read_bytes() == Path("b/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("decoder.gain"), "decoder.gain"),
        (lambda state: state.update({"decoder.x": torch.ones(1)}), "decoder.x"),
        (lambda state: state.update({"decoder.gain": torch.ones(1, 9, 1, 1)}), "decoder.gain is [1, 9, 1, 1]"),
        (lambda state: state["encoder.in_conv.bias"].fill_(torch.nan), "encoder.in_conv.bias holds numbers that are"),
        (lambda state: state.update({"decoder.gain": torch.ones(1).expand(1, 2**40)}), "share their numbers"),
        (lambda state: state.update({"module.decoder.gain": state["decoder.gain"].clone()}), "tensors twice"),
    ],
)
def test_tensors_that_do_not_fit(refused, tmp_path: Path, change, message: str):
    found = refused(1, changed(tmp_path, change))
    assert message in found
    assert str(tmp_path) in found


def test_a_log_without_sense(refused, tmp_path: Path):
    path = changed(tmp_path, lambda state: None)
    log = tmp_path / "iter-1000-log.jsonl"
    whole = log.read_text()
    for old, new, code, message in (
        ('"key": "zdim", "value": 8', '"key": "zdim", "value": NaN', 1, "zdim is nan"),
        ('"key": "zdim"', '"key": "z"', 1, "lacks the hyper-parameter zdim"),
        ("1x1,4m1", "1x1,5m1", 2, "5m1"),
    ):
        log.write_text(whole.replace(old, new))
        found = refused(code, path)
        assert message in found
        assert str(log) in found
    log.write_text(whole)


@pytest.mark.slow
def test_from_a_download_to_images(run, tmp_path: Path, cut_patches):
    for number, pixels in enumerate(cut_patches(12, 32)):
        save_png(tmp_path / "data" / f"{number}.png", pixels)
    for command in (
        ("import", SMALL, "--out", "runs/a"),
        ("analyze-kl", "data", "--keep", "3%,100%"),
        ("encode", "--keep", "3%", "data", "out.zarr"),
        ("verify", "out.zarr"),
        ("decode", "out.zarr", "images"),
    ):
        code, out = run(*command)
        assert code == 0, out
    assert len(open_store("out.zarr")) == len([*Path("images").rglob("*.png")]) == 12


def test_vdvae_presets_are_known_to_import():
    assert sorted(VDVAE_PRESETS) == [name for name in preset_names() if name.endswith("_vdvae")]
    assert {load_preset(name).model.activation for name in VDVAE_PRESETS} == {"gelu"}
