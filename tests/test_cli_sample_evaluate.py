"""The whole commands sample and evaluate: what they write, what they say, and how they refuse."""

from __future__ import annotations

import dataclasses
import gc
import json
import re
import resource
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hvae_codec.model import sampling
from hvae_codec.model.checkpoint import load_model, load_run_config, load_weights, save_model
from hvae_codec.model.hvae import HVAE
from hvae_codec.model.sampling import sample_images
from hvae_codec.report import samples
from hvae_codec_cli.app import main
from photos import save_png


@pytest.fixture
def work(tiny_run, photo_patches, tmp_path, monkeypatch) -> Path:
    """A folder with data/train (16 patches), data/val (8) and runs/latest, a copy of the tiny run."""
    monkeypatch.chdir(tmp_path)
    for i, patch in enumerate(photo_patches):
        save_png(Path("data", "train" if i < 16 else "val", f"class{i % 2}", f"{i:02d}.png"), patch)
    shutil.copytree(tiny_run, "runs/tiny")
    Path("runs/latest").symlink_to("tiny")
    return tmp_path


def call(capsys, *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        main([str(argument) for argument in arguments])
    return int(exit_info.value.code or 0), *capsys.readouterr()


@pytest.fixture
def hvae(capsys):
    """`hvae(arguments)`: standard output of a command that succeeds."""

    def run(*arguments: object) -> str:
        code, out, err = call(capsys, *arguments)
        assert code == 0, err
        return out

    return run


@pytest.fixture
def refused(capsys):
    """`refused(code, arguments)`: the one sentence that a command exits with; the splits may stand before it."""

    def run(code: int, *arguments: object) -> str:
        found, out, err = call(capsys, *arguments)
        assert (found, out) == (code, ""), err
        *bars, sentence = err.splitlines()
        assert not any(bar.strip() for bar in bars if not bar.startswith("train ")), err
        assert sentence.startswith("hvae-codec: "), err
        return sentence.removeprefix("hvae-codec: ")

    return run


def pixels(path: Path | str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


# --- sample


def test_a_grid_by_default(work, hvae):
    assert hvae("sample") == "samples.png: 64 images drawn at temperature 0.85\n"
    grid = pixels("samples.png")
    assert grid.shape == (8 * 18 - 2, 8 * 18 - 2, 3)
    (images,) = sample_images(load_model("runs/latest"), 64, 0.85)
    for place in (0, 7, 8, 63):
        top, left = (18 * i for i in divmod(place, 8))
        assert (grid[top : top + 16, left : left + 16] == images[place].transpose(1, 2, 0)).all()
    assert (grid[16:18] == 255).all()


def test_one_file_an_image(work, hvae):
    hvae("sample", "--n", 5, "--out", "drawn/new", "--batch-size", 2, "--temperature", "0.7:0.9", "--seed", 4)
    names = sorted(p.name for p in Path("drawn/new").iterdir())
    assert names == [f"{i:06d}.png" for i in range(5)]
    assert [p.name for p in Path("drawn").iterdir()] == ["new"]
    (images,) = sample_images(load_model("runs/latest"), 3, "0.7:0.9", seed=4)
    for name, image in zip(names, images, strict=False):
        assert np.abs(pixels(f"drawn/new/{name}").astype(int) - image.transpose(1, 2, 0)).max() <= 1


def test_an_array(work, hvae):
    out = hvae("sample", "--n", 5, "--out", "drawn.npy", "--batch-size", 2, "--output-temperature", 0.8)
    assert out == "drawn.npy: 5 images drawn at temperature 0.85\n"
    (images,) = sample_images(load_model("runs/latest"), 5, 0.85, output_temperature=0.8)
    array = np.load("drawn.npy")
    assert array.shape == (5, 16, 16, 3)
    assert np.abs(array.astype(int) - images.transpose(0, 2, 3, 1)).max() <= 1
    assert not list(work.glob("*.partial"))


def test_one_image(work, hvae):
    assert hvae("sample", "--n", 1, "--temperature", "0.5,1,1").startswith("samples.png: 1 image drawn at")
    assert pixels("samples.png").shape == (16, 16, 3)


def test_a_grid_is_replaced_when_asked(work, hvae, refused):
    Path("samples.png").write_text("mine")
    sentence = refused(1, "sample", "--n", 2)
    assert sentence.startswith("samples.png exists; ")
    assert "--overwrite" in sentence
    assert Path("samples.png").read_text() == "mine"
    hvae("sample", "--n", 3, "--overwrite")
    assert pixels("samples.png").shape == (34, 34, 3)
    assert (pixels("samples.png")[18:, 18:] == 255).all()


def test_grey_images(work, hvae, tiny_config):
    config = dataclasses.replace(tiny_config, model=dataclasses.replace(tiny_config.model, channels=1))
    save_model(Path("runs/grey"), config, HVAE(config.model).state_dict())
    hvae("sample", "--n", 4, "--model", "runs/grey")
    assert pixels("samples.png").shape == (34, 34)
    hvae("sample", "--n", 1, "--model", "runs/grey", "--out", "grey")
    assert pixels("grey/000000.png").shape == (16, 16)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_files(work, hvae, monkeypatch):
    """Drawing is replaced by making arrays, whose memory is counted: ten times the images, no more at once."""
    monkeypatch.setattr(sampling, "_draw", lambda model, images, *_: np.zeros((len(images), 3, 64, 64), np.uint8))
    peaks = []
    for count in (50, 500):
        gc.collect()  # what is garbage already would be freed at one moment or another
        tracemalloc.start()
        hvae("sample", "--n", count, "--batch-size", 50, "--out", f"drawn{count}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert len(list(Path("drawn500").iterdir())) == 500
    # The 450 further images are 5,529,600 bytes; a progress bar takes some too, more the longer it is shown.
    assert peaks[1] < peaks[0] + 1_000_000


def test_an_interrupted_sample_leaves_nothing(work, capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(samples, "_image", stop)
    for out in ("drawn", "grid.png"):
        code, _, err = call(capsys, "sample", "--n", 2, "--out", out)
        assert code == 130
        assert err.strip().endswith("Stopped. Nothing was written.")
    assert sorted(p.name for p in work.iterdir()) == ["data", "runs"]


def test_a_full_disk_leaves_nothing(work, capsys):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        results = [call(capsys, "sample", "--out", out) for out in ("grid.png", "drawn.npy")]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    for code, out, err in results:
        assert (code, out) == (1, "")
        assert "hvae-codec: no space left" in err
    assert sorted(p.name for p in work.iterdir()) == ["data", "runs"]


@pytest.mark.parametrize(
    ("code", "arguments", "sentence"),
    [
        (
            2,
            ("--temperature", "hot"),
            "the temperature is 'hot'; give .* 0.7:0.9, .* 0.7,0.8,0.9",
        ),
        (
            2,
            ("--temperature", "0.7,0.9"),
            r"2 temperatures .* give 1 .*, 3 \(.*2, 8, 16\) or 4",
        ),
        (2, ("--temperature=-1",), "the temperature -1 is"),
        (
            2,
            ("--output-temperature", 0),
            "the output temperature is 0; .*above 0",
        ),
        (
            2,
            ("--out", "samples.jpg"),
            r"samples.jpg cannot be written; give .*\.png .*\.npy .*folder",
        ),
        (
            2,
            ("--n", 1_000_000),
            "1,000,000 images .* 89,478,485 pixels; give fewer images, or a folder",
        ),
        (1, ("--out", "runs/tiny/config.json/a.png"), "config.json is a file"),
        (1, ("--out", "data"), "data exists and is not empty; give"),
        (1, ("--out", "data", "--overwrite"), "data exists and is not empty; give"),
        (1, ("--model", "runs/none"), "no run at runs/none; check"),
    ],
)
def test_sample_refuses(work, refused, code, arguments, sentence):
    assert re.search(sentence, refused(code, "sample", *arguments))
    assert sorted(p.name for p in work.iterdir()) == ["data", "runs"]


def test_png_holds_no_four_channels(work, hvae, refused, tiny_config):
    config = dataclasses.replace(tiny_config, model=dataclasses.replace(tiny_config.model, channels=4))
    save_model(Path("runs/four"), config, HVAE(config.model).state_dict())
    for out in ("grid.png", "folder"):
        sentence = refused(2, "sample", "--model", "runs/four", "--out", out)
        assert re.search(r"1 or 3 channels, .* 4; give .*\.npy$", sentence)
    hvae("sample", "--model", "runs/four", "--n", 2, "--out", "four.npy")
    assert np.load("four.npy").shape == (2, 16, 16, 4)


# --- evaluate


def test_evaluate_shows_a_table(work, hvae):
    out = hvae("evaluate", "data")
    assert "8 held-out images, 1 posterior sample each" in out
    for word in ("NELBO", "rate (KL)", "distortion", "PSNR", "SSIM", "±", "bits/dim", "dB", "(KL above 0.01 nats): "):
        assert word in out
    assert "importance" not in out
    assert "importance-weighted bound" in hvae("evaluate", "data", "--samples", 2)


def test_evaluate_as_json_and_csv(work, hvae):
    arguments = ("evaluate", "data", "--samples", 3, "--seed", 1)
    data = json.loads(hvae(*arguments, "--json", "--csv", "images.csv"))
    assert data["about"]["split"] == "val"
    assert data["about"]["data"] == "data"
    assert data["about"]["images"] == 8
    assert data["about"]["held_out"] is True
    assert set(data["figures"]["nelbo"]) == {"mean", "standard_error", "unit"}
    assert data["figures"]["importance_bound"]["mean"] < data["figures"]["nelbo"]["mean"]
    table = pd.read_csv("images.csv")
    assert table["name"].tolist() == sorted(table["name"])
    assert table["name"].str.startswith("val/").all()
    assert set(table["label"]) == {"class0", "class1"}
    assert table["nelbo"].mean() == pytest.approx(data["figures"]["nelbo"]["mean"])
    again = json.loads(hvae(*arguments, "--json", "--batch-size", 3))
    assert again["figures"]["nelbo"]["mean"] == pytest.approx(data["figures"]["nelbo"]["mean"], rel=1e-5)
    assert "Every image: images.csv" in hvae(*arguments, "--csv", "images.csv", "--overwrite")


def test_evaluate_takes_a_split_and_a_number_of_images(work, hvae):
    for arguments, count in ((("--split", "train"), 16), (("--split", "all"), 24), (("--images", 3), 3)):
        assert json.loads(hvae("evaluate", "data", "--json", *arguments))["about"]["images"] == count
    out = hvae("evaluate", "data", "--images", 1)
    assert "nan" not in out
    assert " - " in out


def test_evaluate_shows_what_published_bins_change(work, hvae, tiny_run):
    config = load_run_config(tiny_run)
    five = dataclasses.replace(config, model=dataclasses.replace(config.model, bits=5, bins="published"))
    save_model(Path("runs/five"), five, load_weights(tiny_run / "model.safetensors"))
    out = hvae("evaluate", "data", "--model", "runs/five")
    for row in ("NELBO, exact bins", "NELBO, published bins", "change by published bins"):
        assert row in out
    figures = json.loads(hvae("evaluate", "data", "--model", "runs/five", "--json"))["figures"]
    assert figures["nelbo"]["mean"] == figures["nelbo_published_bins"]["mean"] < figures["nelbo_exact_bins"]["mean"]


@pytest.mark.parametrize(
    ("code", "arguments", "sentence"),
    [
        (1, ("missing",), "there is no missing; give a folder of images"),
        (1, ("data", "--csv", "mine.csv"), "mine.csv exists; .*--overwrite"),
        (1, ("data", "--csv", "runs"), "runs is a folder; give .*evaluation.csv"),
        (
            1,
            ("data", "--csv", "mine.csv/new/images.csv"),
            "mine.csv/new/images.csv cannot be written: {work}/mine.csv is a file; give",
        ),
        (1, ("data", "--model", "data"), "data is not a run: .*config.json"),
        (2, ("data", "--samples", 0), "--samples is 0; "),
        (2, ("data", "--images", 0), "--images is 0; "),
        (2, ("data", "--split", "dev"), "Invalid value for '--split': "),
        (1, ("data", "--split", "test"), "no image in data is in a folder test/"),
    ],
)
def test_evaluate_refuses(work, refused, code, arguments, sentence):
    Path("mine.csv").write_text("mine")
    found = refused(code, "evaluate", *arguments)
    assert re.match(sentence.format(work=work), found)
    assert Path("mine.csv").read_text() == "mine"


def test_evaluate_refuses_images_that_do_not_fit(work, refused):
    Image.fromarray(np.full((16, 16), 300, np.uint16)).save("data/val/class0/99.png")
    assert refused(1, "evaluate", "data").startswith("data/val/class0/99.png has more than 8 bits")
