"""Whole commands: what they write, what they say, and that bad input is one sentence and an exit code."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hvae_codec import open_store
from hvae_codec.config import load_config, with_settings
from hvae_codec.data import sample as sample_data
from hvae_codec.data.sources import open_images
from hvae_codec.model.checkpoint import find_run, load_weights, save_weights
from hvae_codec.presets import load_preset
from hvae_codec.prune.kl_stats import load_kl_stats
from hvae_codec_cli import app as app_module
from hvae_codec_cli.app import main
from hvae_codec_cli.image_range import parse_range

GOLDEN = Path(__file__).parent / "golden" / "symmetric"
CONFIG = """
stages = [
    {resolution = 16, width = 8, variates = 3, bottleneck = 0.5},
    {resolution = 8, width = 8, variates = 4, bottleneck = 0.5},
    {resolution = 2, width = 12, variates = 5, bottleneck = 0.5},
]
[model]
resolution = 16
mixtures = 2
middle_layers = 1
[train]
steps = 30
batch_size = 8
ema_decay = 0.5
"""


def exit_code(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main([str(argument) for argument in arguments])
    return int(exit_info.value.code or 0)


@pytest.fixture
def hvae(capsys):
    """`hvae(arguments)`: standard output of a command that succeeds."""

    def call(*arguments: object) -> str:
        capsys.readouterr()
        code = exit_code(*arguments)
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    return call


@pytest.fixture
def refused(capsys):
    """`refused(code, arguments)`: the one sentence of a command that exits with `code`."""

    def call(code: int, *arguments: object) -> str:
        capsys.readouterr()
        found = exit_code(*arguments)
        out, err = capsys.readouterr()
        *bars, sentence = err.splitlines()
        assert found == code, err
        # What encode says of ranking and cost comes before the long part, so before what may go wrong there.
        assert not out or out.startswith("Ranking: "), out
        assert sentence.startswith("hvae-codec: "), err
        # Bars count: 0/300. Before them, the images for training and those held out are said.
        assert all("/" in bar or bar.startswith("train ") or not bar.strip() for bar in bars), err
        assert "Traceback" not in err
        return sentence.removeprefix("hvae-codec: ")

    return call


@pytest.fixture(scope="module")
def origin(tmp_path_factory) -> Path:
    """A folder in which the README's commands have run: data, tiny.toml, runs/first, out.zarr."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setitem(sample_data.PATCHES, "train", 60)
        patch.setitem(sample_data.PATCHES, "val", 12)
        few = ("chelsea", "china", "coffee")
        patch.setattr(sample_data, "PHOTOGRAPHS", {name: sample_data.PHOTOGRAPHS[name] for name in few})
        Path("tiny.toml").write_text(CONFIG)
        assert exit_code("sample-data", "data", "--size", 16) == 0
        assert exit_code("train", "data", "--config", "tiny.toml", "--out", "runs/first") == 0
        assert exit_code("analyze-kl", "data", "--keep", "5%,30%,100%") == 0
        assert exit_code("encode", "data", "out.zarr", "--keep", "30%") == 0
    return folder


@pytest.fixture
def work(origin, tmp_path, monkeypatch, blank_pictures) -> Path:
    """A copy of `origin` to work in."""
    folder = tmp_path / "work"
    shutil.copytree(origin, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


def tree(*folders: str) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for folder in folders for p in sorted(Path(folder).rglob("*")) if p.is_file()}


@contextlib.contextmanager
def disk_full(largest_file: int) -> Iterator[None]:
    """Files can grow to this many bytes only, as on a disk with no more room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# --- the whole job


def test_sample_data_was_written(work):
    assert len(open_images("data", size=16, channels=3).split("train")) == 60
    assert len(open_images("data", size=16, channels=3).split("val")) == 12
    assert json.loads(Path("data/sample-data.json").read_text())["size"] == 16


def test_train_leaves_a_run(work, hvae):
    assert find_run("runs/latest") == Path("runs/first")
    names = {p.name for p in Path("runs/first").iterdir()}
    assert names >= {"config.json", "model.safetensors", "metrics.csv", "validation.csv", "state"}
    saved = load_config(Path("runs/first/config.json"))
    assert saved.train.precision in ("fp32", "bf16")
    assert with_settings(saved, ["train.precision=auto"]) == load_config(Path("tiny.toml"))
    out = hvae("train", "data", "--config", "tiny.toml", "--steps", 3, "--set", "train.batch_size=4")
    assert "3 steps on 60 images" in out
    assert "(12 images)" in out
    run = find_run("runs/latest")
    assert run.name.startswith("tiny-")
    assert load_config(run / "config.json").train.batch_size == 4


def test_a_trained_run_goes_on_for_longer(work, hvae):
    assert "33 steps on" in hvae("train", "data", "--resume", "--steps", 33)
    assert find_run("runs/latest") == Path("runs/first")


ANALYSIS_FILES = {
    "cutoffs.csv",
    "cutoffs.json",
    "cutoffs.png",
    "groups.csv",
    "groups.json",
    "masks",
    "reconstructions.png",
    "report.html",
}


@pytest.mark.slow
def test_analyze_kl(work, hvae):
    ranking = Path("runs/first/analysis/kl_stats.npz")
    before = ranking.read_bytes()
    out = hvae("analyze-kl", "data", "--keep", "100%,10%,0.1", "--images", 7, "--out", "tables")
    assert "it is of 60 images, and this one of 7 images; --overwrite" in out
    assert ranking.read_bytes() == before
    for word in ("keep 10%", "keep 100%", "NELBO", "PSNR", "7 held-out images, variates ranked on 7", "improves the"):
        assert word in out
    assert "Page: tables/report.html" in out
    assert {p.name for p in Path("tables").iterdir()} == ANALYSIS_FILES
    assert pd.read_csv("tables/cutoffs.csv")["keep"].tolist() == [0.1, 1.0]
    names = {p.name for p in Path("runs/first/analysis").iterdir()}
    assert names == ANALYSIS_FILES | {"kl_stats.npz", "steps.json"}
    for picture in ("cutoffs.png", "reconstructions.png"):  # drawn by the fixture, which `tables` has blank
        assert Path(f"runs/first/analysis/{picture}").read_bytes().startswith(b"\x89PNG")
    assert "keep 5%" in hvae("info", "runs/first")
    about = json.loads(Path("tables/cutoffs.json").read_text())["about"]
    assert about["source"] == open_images("data", size=16, channels=3).split("val").evenly(7).fingerprint


@pytest.mark.slow
def test_a_ranking_of_more_images_stays_unless_overwritten(work, hvae):
    few = ("analyze-kl", "data", "--keep", "100%", "--out", "few", "--images", 7)
    assert "in place of one of 60 images" in hvae(*few, "--overwrite")
    assert load_kl_stats(Path("runs/first/analysis/kl_stats.npz")).images == 7
    assert "in place of one of 7 images" in hvae(*few[:-1], 8)
    assert "Ranking, for encode: runs/first/analysis/kl_stats.npz\n" in hvae(*few[:-1], 8)  # the same


@pytest.mark.slow
def test_analyze_kl_at_every_kind_of_cutoff(work, hvae):
    mask = "runs/first/analysis/masks/keep-5.json"
    options = ("--keep", "20%", "--cutoff", "0.0001", "--tolerance", "2%", "--mask", mask, "--granularity", "position")
    out = hvae("analyze-kl", "data", *options, "--out", "tables")
    for word in ("keep 20%", "cutoff 0.0001 bits", "tolerance 2%", "keep-5.json", "Tolerance 2%: "):
        assert word in out
    table = pd.read_csv("tables/cutoffs.csv")
    assert len(table) == 4
    assert table["kept_dims"].is_monotonic_increasing
    masks = {p.name for p in Path("tables/masks").iterdir()}
    rules = ("keep-20-by-position", "cutoff-0.0001-bits-by-position", "tolerance-2-by-position")
    assert masks == {f"{rule}.json" for rule in rules}
    dims = table["dims"].iloc[0]
    assert (
        table.set_index("rule")["kept_dims"]["keep 20%, by position"] == dims // 5
    )  # single dimensions fill the share
    hvae("analyze-kl", "data", "--keep", "25%", "--count", "variates", "--out", "published")
    assert pd.read_csv("published/cutoffs.csv")["rule"].tolist() == ["keep 25% of variates"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--cutoff", "0.0001"), ("--tolerance", "2%", "--granularity", "position")])
def test_encode_at_every_kind_of_cutoff(work, hvae, options):
    out = hvae("encode", "data", "new.zarr", *options)
    assert re.search(r"Kept [\d,]+ of [\d,]+ latent dimensions", out)
    assert ("Tolerance 2%: " in out) == ("--tolerance" in options)
    hvae("decode", "new.zarr", "new")
    store = open_store("new.zarr")
    assert (store.columns.granularity == "position") == ("position" in options)
    decoded = open_images("new", size=16, channels=3)
    by_name = dict(zip(decoded.names, decoded.read(range(len(decoded))), strict=True))
    np.testing.assert_array_equal(by_name[store.names[3]], store.decode([3])[0])


def test_encode_with_a_mask_from_analyze_kl(work, hvae):
    hvae("encode", "data", "new.zarr", "--mask", "runs/first/analysis/masks/keep-30.json")
    assert tree("new.zarr") == {name.replace("out.", "new."): data for name, data in tree("out.zarr").items()}


def test_encode_and_decode(work, hvae):
    store = open_store("out.zarr")
    source = open_images("data", size=16, channels=3)
    assert store.names == list(source.names)
    assert set(store.labels) == {p.name for p in Path("data/train").iterdir()}
    assert store.run == "runs/first"
    assert hvae("decode", "out.zarr", "images") == "images: 72 decoded images\n"
    decoded = open_images("images", size=16, channels=3)
    assert decoded.names == source.names
    assert decoded.labels == source.labels
    np.testing.assert_allclose(decoded.read([0, 71]), store.decode([0, 71]), atol=1)
    hvae("decode", "out.zarr", "one", "--images", -1, "--format", "npy", "--model", "runs/first", "--device", "cpu")
    assert np.load("one/images.npy").shape == (1, 16, 16, 3)


def test_encode_says_what_the_cutoff_costs(work, hvae):
    out = hvae("encode", "data", "val.zarr", "--split", "val", "--keep", "20%", "--codec", "float16")
    assert "latent dimensions (" in out
    assert "on 12 held-out images" in out
    assert "dense latents" in out
    assert "val.zarr" in out
    assert len(open_store("val.zarr")) == 12
    assert open_store("val.zarr").codec.name == "float16"
    hvae("encode", "data", "small.zarr", "--split", "val", "--keep", "20%", "--codec", "archive", "--code-bits", 8)
    small = open_store("small.zarr")
    assert (small.metadata.packing, {*small.dtypes.values()}) == ("archive", {"int8"})
    assert "archive" in hvae("info", "small.zarr")
    shutil.rmtree("runs/first/analysis")
    assert "The run had no ranking" in hvae("encode", "data", "new.zarr", "--keep", "0.01%")
    assert Path("runs/first/analysis/kl_stats.npz").exists()
    out = hvae("encode", "data", "new.zarr", "--keep", "0.01%", "--overwrite", "--step", 2)
    assert "The highest-ranked variate alone holds" in out
    assert open_store("new.zarr").codec.to_dict() == {"name": "int", "step": 2.0}


def test_encode_finds_a_step_once(work, hvae, refused):
    """It is in the store, and beside the ranking for all who encode with this mask, however the encode is told."""
    first = json.loads(hvae("encode", "data", "new.zarr", "--keep", "10%", "--json"))["cutoff"]
    step, search = first["codec"]["step"], first["codec"]["search"]
    assert open_store("new.zarr").codec.to_dict() == {"name": "int", "step": step}
    assert (search["images"], search["held_out"]) == (12, True)
    assert search["distortion_bits_per_dim"] <= search["sampled_distortion_bits_per_dim"] or not search["is_tolerable"]
    kept = json.loads(Path("runs/first/analysis/steps.json").read_text())["steps"]
    assert step in [entry["step"] for entry in kept]
    stored = first["cost"]["stored"]
    total = stored["bits_per_dim"] + stored["distortion_bits_per_dim"]
    assert stored["description_length_bits_per_dim"] == pytest.approx(total)
    again = ("encode", "data", "again.zarr", "--keep", "10%", "--step", "auto", "--batch-size", 5, "--seed", 3)
    out = " ".join(hvae(*again).split())  # long lines are wrapped
    assert f"Step {step:g}" in out
    assert "from runs/first/analysis/steps.json" in out
    assert f"{total:.1f}" in out
    assert open_store("again.zarr").codec.to_dict() == {"name": "int", "step": step}
    looser = hvae("encode", "data", "loose.zarr", "--keep", "10%", "--step-tolerance", "5%", "--split", "val")
    assert "within 5% above the distortion of posterior samples" in " ".join(looser.split())
    assert open_store("loose.zarr").codec.step >= step
    Path("runs/first/analysis/steps.json").write_text("{")
    assert "remove the file" in refused(1, "encode", "data", "other.zarr", "--keep", "10%")
    given = ("encode", "data", "other.zarr", "--keep", "10%")
    assert "--step is 'fine'; give auto, or a number" in refused(2, *given, "--step", "fine")
    assert "leave one of the two out" in refused(2, *given, "--step", 2, "--step-tolerance", "1%")
    assert "float16 has no --step-tolerance" in refused(2, *given, "--codec", "float16", "--step-tolerance", "1%")
    assert "must be at least 0% of the distortion" in refused(2, *given, "--step-tolerance=-1%")
    for number in ("-1", "nan", "inf", "0"):
        assert f"the quantiser step is {float(number)}" in refused(2, *given, f"--step={number}")


@pytest.mark.slow
def test_encode_by_several_workers(work, hvae):
    shutil.rmtree("runs/first/analysis")  # the first worker makes the ranking, and finds the step
    command = ("encode", "data", "new.zarr", "--keep", "30%", "--shard", 10)
    out = hvae(*command, "--worker", "1/2")
    assert "NELBO" not in out
    assert "Worker 1/2 is done" in out
    out = hvae(*command, "--worker", "0/2")
    assert "NELBO" in out
    assert "new.zarr: 72 images" in out
    assert len(open_store("new.zarr").row_groups) == 8
    hvae("encode", "data", "one.zarr", *command[3:])
    assert {k.replace("new", "one", 1): v for k, v in tree("new.zarr").items()} == tree("one.zarr")
    assert not [p for p in Path().iterdir() if p.name.startswith("new.zarr.")]


def test_encode_evaluates_none_some_or_all(work, hvae):
    assert "NELBO" not in hvae("encode", "data", "new.zarr", "--keep", "30%", "--evaluate", "none")
    assert tree("new.zarr") == {k.replace("out", "new", 1): v for k, v in tree("out.zarr").items()}
    out = hvae("encode", "data", "new.zarr", "--keep", "30%", "--evaluate", 5, "--overwrite", "--chunk", 100)
    assert "on 5 held-out images" in out
    assert "on 12 held-out images" in hvae("encode", "data", "all.zarr", "--keep", "30%", "--evaluate", "all")
    store = open_store("all.zarr")
    nelbo = store.per_image("rate") + store.per_image("distortion")
    assert nelbo.shape == (72,)
    assert (nelbo > 0).all()


def test_append(work, hvae, refused):
    hvae("encode", "data/train", "new.zarr", "--keep", "30%", "--split", "val", "--overwrite")
    count = len(open_store("new.zarr"))
    appending = ("append", "data/train", "new.zarr", "--split", "train")
    for command in ((*appending, "--out"), ("encode", "--keep", "30%", "data")):
        told = refused(1, *command, "/dev/null/x.zarr")
        assert "/dev/null/x.zarr cannot be written (Not a directory); give" in told
    assert "exists; give another name" in refused(1, *appending, "--out", ".")
    out = hvae(*appending)
    assert "new.zarr: 60 images" in out
    assert len(open_store("new.zarr")) == 60 > count
    assert "in new.zarr already" in refused(1, *appending)
    assert "60 of these names already" in refused(1, "append", "data/train", "new.zarr")
    assert "there is no store nowhere.zarr" in refused(1, "append", "data", "nowhere.zarr")


def test_info(work, hvae):
    out = hvae("info", "out.zarr")
    assert "72, in" in out
    assert "runs/first" in out
    store = json.loads(hvae("info", "out.zarr", "--json"))
    assert (store["kind"], store["images"]) == ("store", 72)
    assert store["kept_dims"] == open_store("out.zarr").kept_dims
    run = json.loads(hvae("info", "runs/latest", "--json"))
    assert (run["kind"], run["path"], run["trained"]) == ("run", "runs/first", True)
    assert [row["keep"] for row in run["cutoffs"]] == [0.05, 0.3, 1.0]


@pytest.mark.slow
def test_one_image_is_enough(work, hvae):
    Path("one").mkdir()
    shutil.copy(next(Path("data/train/coffee").iterdir()), "one/a.png")
    hvae("train", "one", "--config", "tiny.toml", "--steps", 2, "--out", "runs/one")
    hvae("analyze-kl", "one", "--keep", "10%,100%")
    assert "10%" in hvae("info", "runs/one")
    assert '"nelbo_change_se": null' in hvae("info", "runs/one", "--json")
    hvae("encode", "one", "one.zarr")
    hvae("decode", "one.zarr", "back")
    assert [str(p) for p in Path("back").rglob("*.png")] == ["back/a.png"]


def test_presets(work, hvae, monkeypatch):
    monkeypatch.setattr("hvae_codec.report.presets.preset_names", lambda: ["cifar10_C1", "tiny32"])
    assert "tiny32" in hvae("presets")
    rows = json.loads(hvae("presets", "--json"))
    assert [row["name"] for row in rows] == ["cifar10_C1", "tiny32"]
    assert json.loads(hvae("presets", "tiny32", "--json"))["model"]["resolution"] == 32
    Path("mine.toml").write_text(hvae("presets", "tiny32"))
    assert load_config(Path("mine.toml")) == load_preset("tiny32")
    hvae("train", "data", "--config", "mine.toml", "--steps", 1, "--set", "train.batch_size=2")
    assert load_config(Path("runs/latest/config.json")).model == load_preset("tiny32").model


def test_import(work, hvae, refused):
    arguments = (GOLDEN / "checkpoints-symmetric", "--config", GOLDEN / "hparams-symmetric.cfg", "--out", "runs/p")
    out = hvae("import", *arguments)
    assert "latent groups" in out
    assert find_run("runs/latest") == Path("runs/p")
    size = load_config(Path("runs/p/config.json")).model.image_size
    hvae("encode", "data", "p.zarr", "--keep", "10%")
    hvae("decode", "p.zarr", "p", "--images", "0:3", "--format", "npy")
    assert np.load("p/images.npy").shape == (3, size, size, 3)
    assert "runs/p exists; give another --out" in refused(2, "import", *arguments)
    refused(1, "import", "nowhere", "--config", GOLDEN / "hparams-symmetric.cfg", "--out", "runs/q")
    refused(2, "import", GOLDEN / "checkpoints-symmetric", "--config", "nowhere.cfg", "--out", "runs/q")
    assert not Path("runs/q").exists()


def test_version_and_help(capsys):
    assert exit_code("--version") == 0
    assert capsys.readouterr().out.strip() == importlib.metadata.version("hvae-codec")
    assert exit_code("--help") == 0
    assert "analyze-kl" in capsys.readouterr().out
    importlib.import_module("hvae_codec_cli")


# --- Ctrl-C


@pytest.mark.slow
def test_an_interrupted_training_goes_on(work, hvae, capsys, monkeypatch):
    def interrupting(watch, metrics):
        if metrics.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr("hvae_codec.train.progress.ProgressReporter.__call__", interrupting)
        capsys.readouterr()
        assert exit_code("train", "data", "--config", "tiny.toml", "--steps", 5, "--out", "runs/b") == 130
    _, err = capsys.readouterr()
    assert "Stopped. Continue with: hvae-codec train data --resume --out runs/b" in err
    assert "Traceback" not in err
    assert [p.name for p in Path("runs/b/state").glob("*.json")][-1] == "step-000000002.json"
    assert "2 of 5" in hvae("info", "runs/b")
    assert "5 steps on" in hvae("train", "data", "--resume")
    unbroken = hvae("train", "data", "--config", "tiny.toml", "--steps", 5, "--out", "runs/c")
    assert "5 steps" in unbroken
    assert Path("runs/b/model.safetensors").read_bytes() == Path("runs/c/model.safetensors").read_bytes()


@pytest.mark.slow
def test_an_interrupted_encode_goes_on(work, hvae, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("hvae_codec.store.folder_writer.FolderStoreWriter.finish", interrupt)
        capsys.readouterr()
        assert exit_code("encode", "data", "new.zarr", "--keep", "30%") == 130
    _, err = capsys.readouterr()
    assert "The same command continues" in err
    assert "Traceback" not in err
    assert not Path("new.zarr").exists()
    hvae("encode", "data", "new.zarr", "--keep", "30%")
    assert not Path("new.zarr.partial").exists()
    ours, whole = tree("new.zarr"), tree("out.zarr")
    assert {k.replace("new", "out", 1): v for k, v in ours.items()} == whole


@pytest.mark.parametrize("file_format", ["png", "npy"])
def test_an_interrupted_decode_goes_on(work, hvae, capsys, monkeypatch, file_format):
    before = sorted(Path().iterdir())
    with monkeypatch.context() as patch:
        patch.setattr("hvae_codec.encode.coder.LatentCoder.output", interrupt)
        assert exit_code("decode", "out.zarr", "images", "--format", file_format) == 130
    err = capsys.readouterr().err
    assert "The same command continues" in err
    assert "Traceback" not in err
    assert sorted({*Path().iterdir()} - {*before}) == [Path("images.partial")]
    hvae("decode", "out.zarr", "images", "--format", file_format)
    assert sorted({*Path().iterdir()} - {*before}) == [Path("images")]


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


# --- bad input


@pytest.fixture(scope="module")
def with_bad_files(origin, tmp_path_factory) -> Path:
    """A copy of `origin`, and files with something wrong; no command that is refused changes any of it."""
    folder = Path(shutil.copytree(origin, tmp_path_factory.mktemp("bad") / "work", symlinks=True))
    (folder / "empty").mkdir()
    (folder / "typo.toml").write_text(CONFIG.replace("mixtures", "mixtuers"))
    (folder / "torn.toml").write_text(CONFIG[:100])
    (folder / "latin1.toml").write_bytes(CONFIG.encode() + b"# \xe9")
    (folder / "list.json").write_text("[1, 2]")
    mask = (folder / "runs/first/analysis/masks/keep-5.json").read_text()
    (folder / "other.json").write_text(mask.replace('"model_hash": "', '"model_hash": "0'))
    return folder


@pytest.mark.parametrize(
    ("code", "arguments", "message"),
    [
        (1, "train empty", "no images in empty"),
        (1, "encode empty new.zarr", "no images in empty"),
        (1, "encode nowhere new.zarr", "no nowhere; give a folder"),
        (2, "train data --preset tiny23", "'tiny23'; did you mean tiny32?"),
        (2, "presets tiny23", "'tiny23'; did you mean tiny32?"),
        (2, "train data --preset tiny32 --config tiny.toml", "give one"),
        (2, "train data --config typo.toml", "model.mixtuers; did you mean mixtures?"),
        (2, "train data --config nowhere.toml", "no configuration file nowhere.toml"),
        (2, "train data --config data", "cannot read the configuration data"),
        (2, "train data --config torn.toml", "cannot read the configuration torn.toml"),
        (2, "train data --config latin1.toml", "cannot read the configuration latin1.toml"),
        (2, "train data --config list.json", "table of keys"),
        (2, "train data --set train.setps=3", "train.setps; did you mean steps?"),
        (2, "train data --set nonsense", "section.key=value"),
        (2, "train data --steps 0", "or equal to 1"),
        (2, "train data --resume --preset tiny32", "leave out --preset"),
        (1, "train data --resume --out runs/nowhere", "no run at runs/nowhere"),
        (
            1,
            "train data --config tiny.toml --steps 9 --out runs/first",
            "has 30 steps, more than train.steps = 9; give --steps above 30",
        ),
        (1, "train data --config tiny.toml --out data", "give another --out"),
        (2, "encode data new.zarr --keep 0%", "keep is 0%; "),
        (2, "encode data new.zarr --keep 150%", "keep is 150%"),
        (2, "encode data new.zarr --keep abc", "keep is 'abc'"),
        (2, "encode data new.zarr --keep nan", "keep is nan"),
        (2, "analyze-kl data --keep 3%,,5%", "keep is ''"),
        (2, "analyze-kl data --cutoff low", "the cutoff is 'low'"),
        (2, "analyze-kl data --cutoff 1e6", "more than 1e+06 bits"),
        (2, "analyze-kl data --tolerance -1%", "tolerance is -1%; "),
        (1, "analyze-kl data --mask nowhere.json", "mask nowhere.json (No such file"),
        (1, "analyze-kl data --mask list.json", "list.json: the mask is damaged"),
        (2, "analyze-kl data --mask other.json", "made for another model"),
        (
            2,
            "analyze-kl data --granularity position --count variates",
            "--count variates is for --keep",
        ),
        (2, "encode data new.zarr --cutoff 0.1 --count variates", "--count variates is for --keep"),
        (1, "analyze-kl data --out tiny.toml", "tiny.toml is no folder"),
        (2, "encode data new.zarr --keep 3% --tolerance 1%", "give one of --keep, "),
        (2, "encode data new.zarr --mask other.json", "made for another model"),
        (2, "encode data new.zarr --granularity pixel", "'pixel' is not one of"),
        (2, "encode data new.zarr --step 0", "quantiser step is 0.0; "),
        (2, "encode data new.zarr --codec zip", "'zip' is not one of"),
        (2, "encode data new.zarr --batch-size 0", "or equal to 1"),
        (2, "encode data new.zarr --shard 0", "or equal to 1"),
        (2, "encode data new.zarr --chunk 0", "or equal to 1"),
        (2, "encode data new.zarr --worker 2/2", "no worker 2/2; "),
        (2, "encode data new.zarr --worker 1", "the worker is '1'; give"),
        (2, "encode data new.zarr --evaluate some", "--evaluate is 'some'; give none,"),
        (2, "encode data new.zarr --foo", "No such option: --foo"),
        (2, "encode data", "Missing argument 'store'"),
        (2, "encode data new.zarr extra", "extra"),
        (2, "encoed data new.zarr", "No such command 'encoed'"),
        (1, "encode data out.zarr", "pass --overwrite"),
        (1, "encode data data --overwrite", "is not overwritten"),
        (1, "encode data new.zarr --model runs/nowhere", "no run at runs/nowhere; check"),
        (1, "encode data new.zarr --model data", "data is not a run: "),
        (1, "decode out.zarr new --model runs/nowhere", "no run at runs/nowhere"),
        (1, "decode out.zarr data", "data exists and is not empty"),
        (1, "decode out.zarr tiny.toml", "tiny.toml exists and is not empty"),
        (1, "decode data new", "data is no zarr store (it has no zarr.json)"),
        (1, "decode tiny.toml new", "tiny.toml is no zarr store"),
        (1, "decode nowhere.zarr new", "there is no store nowhere.zarr"),
        (2, "decode out.zarr new --images 72", "the store has 72"),
        (2, "decode out.zarr new --images abc", "--images is 'abc'"),
        (2, "decode out.zarr new --images 0:10:0", "--images is '0:10:0'"),
        (2, "decode out.zarr new --images 5:5", "names no image"),
        (2, "analyze-kl data --images 0", "or equal to 1"),
        (1, "info data", "data is neither a store "),
        (1, "info nowhere", "there is no store nowhere"),
        (2, "sample-data new --size 2", "at least 4"),
        (2, "sample-data new --size 9999", "too large for every photograph"),
        (1, "sample-data out.zarr --size 16", "out.zarr exists and is not"),
    ],
)
def test_bad_input(with_bad_files, monkeypatch, refused, code, arguments, message):
    monkeypatch.chdir(with_bad_files)
    before = tree(".")
    assert message in refused(code, *arguments.split())
    assert tree(".") == before
    assert not Path("new").exists()


def test_no_run_yet(tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    for arguments in ("encode data new.zarr", "analyze-kl data", "info runs/latest", "train data --resume"):
        sentence = refused(1, *arguments.split())
        option = "--out" if arguments.startswith("train") else "--model"
        advice = ("no run at runs/latest", "hvae-codec train DATA", option)
        assert all(part in sentence for part in advice), sentence
    assert not list(tmp_path.iterdir())


def test_the_model_of_another_run(work, hvae, refused):
    hvae("train", "data", "--config", "tiny.toml", "--steps", 1, "--seed", 1, "--out", "runs/other")
    message = refused(1, "decode", "out.zarr", "new", "--model", "runs/other")
    assert "out.zarr was made with model" in message
    assert "as --model" in message
    assert not Path("new").exists()
    shutil.move("runs/first", "elsewhere")
    assert "the run runs/first, which is not" in refused(1, "decode", "out.zarr", "new")
    hvae("decode", "out.zarr", "new", "--model", "elsewhere")


def test_damaged_weights_are_told(work, refused):
    """Those that no KL depends on, too."""
    weights = load_weights(Path("runs/first/model.safetensors"))
    weights["top_down.output_conv.bias"][0] = float("nan")
    save_weights(Path("runs/first/model.safetensors"), weights)
    for command in ("analyze-kl data --out new", "analyze-kl data --out new --tolerance 1%", "encode data new.zarr"):
        assert "weights are damaged" in refused(1, *command.split())
    assert not Path("new").exists()
    assert not Path("new.zarr").exists()


@pytest.mark.slow
def test_an_analysis_of_a_run_that_cannot_be_written(work, hvae, monkeypatch):
    """The analysis is written all the same, and it is said that the ranking was not kept."""
    Path("runs/first/analysis/kl_stats.npz").unlink()
    Path("runs/first/analysis/kl_stats.npz").mkdir()
    out = hvae("analyze-kl", "data", "--keep", "10%", "--out", "new")
    assert "runs/first/analysis/kl_stats.npz (" in out
    assert Path("new/report.html").exists()


def test_an_analysis_replaces_none_of_the_users_files(work, refused):
    Path("mine").mkdir()
    Path("mine/report.html").write_text("mine")
    assert "mine holds report.html, " in refused(1, "analyze-kl", "data", "--out", "mine")
    assert Path("mine/report.html").read_text() == "mine"


def test_a_broken_image_among_good_ones(work, hvae, refused, capsys):
    broken = sorted(Path("data/train/coffee").iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:150])
    for command in ("encode data new.zarr", "train data --config tiny.toml --out runs/new", "analyze-kl data"):
        message = refused(1, *command.split())
        assert f"{broken} is broken, truncated or unreadable" in message
        assert "--skip-unusable" in message
    assert not Path("new.zarr").exists()
    assert find_run("runs/latest") == Path("runs/first"), "a run that could not start hides the last one"
    with pytest.raises(SystemExit):
        main(["encode", "data", "new.zarr", "--skip-unusable"])
    assert "1 of 72 images could not be" in capsys.readouterr().err
    assert len(open_store("new.zarr")) == 71
    assert str(broken.relative_to("data")) not in open_store("new.zarr").names


def test_the_advice_to_skip_unusable_images_works(work, hvae, refused, capsys):
    """Even where training got as far as its state before the first step."""
    broken = sorted(Path("data/val").rglob("*.png"))[0]
    broken.write_bytes(broken.read_bytes()[:150])
    arguments = ("train", "data", "--config", "tiny.toml", "--steps", 2, "--out", "runs/new")
    assert "or pass --skip-unusable" in refused(1, *arguments)
    assert exit_code(*arguments, "--skip-unusable") == 0
    assert f"  broken (1): {broken.relative_to('data')}\n" in capsys.readouterr().err
    hvae(*arguments, "--skip-unusable")


def test_names_of_skipped_files_are_few(work, capsys):
    for i in range(13):
        Path(f"data/train/bad-{i:02d}.png").touch()
    assert exit_code("encode", "data", "new.zarr", "--skip-unusable", "--evaluate", "none") == 0
    err = capsys.readouterr().err
    assert "13 of 85 images could not be used and were left out" in err
    assert "train/bad-08.png, train/bad-09.png and 3 more\n" in err
    assert "bad-10" not in err


@pytest.mark.slow
def test_what_commands_write_among_the_images_is_no_image(work, hvae, refused, capsys, monkeypatch):
    monkeypatch.chdir("data")
    before = len(open_images(".", size=16, channels=3))
    arguments = ("train", ".", "--config", "../tiny.toml", "--out", "runs/a")
    hvae(*arguments, "--steps", 2)
    hvae("analyze-kl", ".", "--keep", "30%")
    hvae("analyze-kl", ".", "--keep", "30%", "--out", "analysis")
    hvae("encode", ".", "out.zarr", "--keep", "30%", "--evaluate", "none")
    assert exit_code("encode", ".", "../new.zarr", "--keep", "30%", "--evaluate", "none") == 0
    assert "passed over (4): analysis, out.zarr, runs/a, runs/latest\n" in capsys.readouterr().err
    assert len(open_store("out.zarr")) == len(open_store("../new.zarr")) == before
    hvae("train", ".", "--resume", "--steps", 3)
    assert "give a new folder as --out" in refused(1, "analyze-kl", ".", "--out", "train")


RUN_ALL = """
import sys
from hvae_codec_cli.app import main
for command in sys.argv[1:]:
    try:
        main(command.split())
    except SystemExit as done:
        assert not done.code, done.code
"""


@pytest.mark.slow
def test_names_on_the_disk_are_utf8_in_every_locale(work):
    sorted(Path("data/val").iterdir())[0].rename("data/val/K\u00e4se")
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    commands = ("encode data new.zarr --split val --evaluate none", "decode new.zarr new")
    program = [sys.executable, "-c", RUN_ALL, *commands]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    source = open_images("data", size=16, channels=3).split("val")
    assert any("K\u00e4se" in name for name in source.names)
    assert open_store("new.zarr").names == list(source.names)
    assert open_images("new", size=16, channels=3).names == source.names


@pytest.mark.slow
def test_grey_images_and_a_colour_model(work, hvae, refused):
    for path in Path("data").rglob("*.png"):
        with Image.open(path) as image:
            image.convert("L").save(path)
    for command in ("encode data new.zarr", "train data --config tiny.toml --out runs/new", "analyze-kl data"):
        assert "is grey (1 channel)" in refused(1, *command.split())
    assert not Path("new.zarr").exists()
    arguments = ("--config", "tiny.toml", "--set", "model.channels=1", "--steps", 2, "--out", "runs/grey")
    hvae("train", "data", *arguments)
    hvae("encode", "data", "new.zarr", "--keep", "30%")
    hvae("decode", "new.zarr", "new")
    assert open_images("new", size=16, channels=1).read([0]).shape == (1, 1, 16, 16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("largest_file", "arguments", "leaves"),
    [
        (20_000, "train data --config tiny.toml --steps 2 --out runs/new", None),
        (400, "analyze-kl data --keep 10% --out new", "new"),
        (1_500, "analyze-kl data --keep 10% --out new", "new"),
        (100, "encode data new.zarr --keep 20%", "new.zarr"),
        (600, "encode data new.zarr --keep 100% --codec float32", "new.zarr"),
        (100, "decode out.zarr new", "new"),
        (1_000, "decode out.zarr new --format npy", "new"),
        (100, "sample-data new --size 16", "new"),
        (20_000, f"import {GOLDEN}/checkpoints-symmetric --config {GOLDEN}/hparams-symmetric.cfg --out runs/new", None),
    ],
)
def test_no_space_left(work, hvae, refused, capsys, monkeypatch, largest_file, arguments, leaves):
    monkeypatch.setitem(sample_data.PATCHES, "train", 10)
    monkeypatch.setattr(sample_data, "PHOTOGRAPHS", {"coffee": sample_data.PHOTOGRAPHS["coffee"]})
    with disk_full(largest_file):
        message = refused(1, *arguments.split())
    assert "make room" in message or "File too large" in message
    assert not list(Path().rglob("*.partial/zarr.json.*"))
    if leaves == "new.zarr":
        assert not Path(leaves).exists()
    elif leaves:
        left = [p for p in Path().rglob("*.partial") if p.name.startswith((leaves, f".{leaves}"))]
        assert left == ([Path("new.partial")] if arguments.startswith("decode") else [])
        assert all(p.suffix in (".csv", ".json") for p in Path(leaves).rglob("*"))  # whole ones
    else:
        assert not Path("runs/new/model.safetensors").exists()
        assert find_run("runs/latest") != Path("runs/new") or "train" in arguments
    # With room again, the same command works; a training that was begun is resumed.
    hvae(*("train data --resume --out runs/new" if arguments.startswith("train") else arguments).split())


def test_damaged_stores_and_runs(work, refused):
    shard = next(p for p in Path("out.zarr").glob("z*/c/0/**/*") if p.is_file())
    content = bytearray(shard.read_bytes())
    content[2] ^= 255
    shard.write_bytes(content)
    assert "damaged" in refused(1, "decode", "out.zarr", "new")
    assert not Path("new").exists()
    Path("runs/first/analysis/kl_stats.npz").write_bytes(b"PK")
    assert "cannot read the ranking" in refused(1, "encode", "data", "new.zarr")
    weights = Path("runs/first/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "cannot read the weights runs/first/model.safetensors" in refused(1, "encode", "data", "new.zarr")
    Path("runs/first/config.json").write_text("{")
    assert "cannot read the configuration runs/first/config.json" in refused(2, "info", "runs/first")


def test_unknown_system_errors_are_one_sentence_too(work, refused, monkeypatch):
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "out.zarr")

    monkeypatch.setattr("hvae_codec.encode.encoded_store.open_store", denied)
    assert refused(1, "decode", "out.zarr", "new").startswith("permission denied (out.zarr); give your user the right")
    full = OSError(28, "No space left on device", "x")
    assert app_module._os_message(full).startswith("no space left (x); make room")
    assert app_module._os_message(OSError("odd")) == "odd"


def test_ranges():
    assert parse_range("all", 5) == range(5)
    assert parse_range("3", 5) == range(3, 4)
    assert parse_range("-1", 5) == range(4, 5)
    assert parse_range("-5", 5) == range(1)
    assert parse_range("1:", 5) == range(1, 5)
    assert parse_range(":-1", 5) == range(4)
    assert parse_range("0:1000:2", 5) == range(0, 5, 2)
    assert parse_range("::", 5) == range(5)


# --- The page about Python


def test_the_python_of_the_docs_runs(work, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "api" / "index.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    names: dict[str, object] = {}
    exec(code.replace("size=32", "size=16").replace("17, 42", "7, 2"), names)
    assert names["elbo"].nelbo.shape == (64,)
    assert len(names["store"]) == 72
