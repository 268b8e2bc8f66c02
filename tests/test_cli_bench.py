"""The whole command bench: what it writes, what it says, and how it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from hvae_codec import open_store
from hvae_codec_cli.app import main
from photos import save_png

FEW = ("--step", "1,2", "--quality", "30,80")


@pytest.fixture
def work(tiny_run, photo_patches, tmp_path, monkeypatch) -> Path:
    """A folder with data/train (16 patches), data/val (8) and runs/latest, a copy of the tiny run."""
    monkeypatch.chdir(tmp_path)
    for i, patch in enumerate(photo_patches):
        save_png(Path("data", "train" if i < 16 else "val", f"{i:02d}.png"), patch)
    for name in ("config.json", "model.safetensors"):
        Path("runs/latest").mkdir(parents=True, exist_ok=True)
        Path("runs/latest", name).write_bytes((tiny_run / name).read_bytes())
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


@pytest.mark.usefixtures("blank_pictures")
def test_a_model_and_codecs(work, hvae):
    out = hvae("bench", "data", *FEW, "--keep", "30%,100%")
    assert "8 held-out images, 16 × 16, RGB, 8 bits" in out
    for words in ("keep 30%", "keep 100%", "step 2", "PNG", "JPEG XL", "AVIF", "quality 80", "one core"):
        assert words in out
    table = pd.read_csv("runs/latest/analysis/bench.csv")
    assert table["kind"].value_counts().to_dict() == {"lossy": 8, "model": 4, "lossless": 3}
    assert Path("runs/latest/analysis/bench.png").exists()
    assert "report.html" not in out


@pytest.mark.usefixtures("blank_pictures")
def test_options_given_twice_count_twice(work, hvae):
    twice = ("--keep", "30%", "--keep", "100%", "--step", 1, "--step", 2, "--quality", 30, "--quality", 80)
    hvae("bench", "data", *twice, "--cutoff", "0.5", "--cutoff", "0.1", "--out", "twice")
    at_once = ("--keep", "30%,100%", "--step", "1,2", "--quality", "30,80", "--cutoff", "0.5,0.1")
    hvae("bench", "data", *at_once, "--out", "once")
    rows = [pd.read_csv(f"{folder}/bench.csv")[["method", "setting"]] for folder in ("twice", "once")]
    assert rows[0].equals(rows[1])


@pytest.mark.usefixtures("blank_pictures")
def test_the_page_has_it_whichever_comes_first(work, hvae):
    hvae("bench", "data", *FEW, "--keep", "30%")
    hvae("analyze-kl", "data", "--keep", "30%,100%")
    page = Path("runs/latest/analysis/report.html")
    first = page.read_text()
    assert first.count('id="codecs"') == 1
    assert "quality 80" in first
    out = hvae("bench", "data", "--step", 1, "--quality", "40", "--keep", "100%")
    assert "Page: runs/latest/analysis/report.html" in out
    second = page.read_text()
    assert second.count('id="codecs"') == 1
    assert "quality 40" in second
    assert "quality 80" not in second


@pytest.mark.usefixtures("blank_pictures")
def test_stores_alone_and_beside_a_model(work, hvae):
    hvae("encode", "data", "a.zarr", "--keep", "30%", "--evaluate", "none", "--step", 1)
    hvae("encode", "data", "b.zarr", "--keep", "30%", "--evaluate", "none", "--step", 3, "--embed", "decoder")
    data = json.loads(hvae("bench", "data", "--store", "a.zarr", "--store", "b.zarr", "--quality", "50", "--json"))
    stores = [row for row in data["rows"] if row["kind"] == "store"]
    assert [row["method"] for row in stores] == ["a.zarr", "b.zarr"]
    assert [row["bytes"] for row in stores] == [open_store(p).nbytes_on_disk() / 24 for p in ("a.zarr", "b.zarr")]
    assert stores[0]["payload_bytes"] > stores[1]["payload_bytes"]
    assert stores[0]["encode_per_second"] is None
    assert data["about"]["stores"] == {"a.zarr": 24, "b.zarr": 24}
    assert data["files"] == {}
    assert not Path("runs/latest/analysis/bench.csv").exists()
    both = ("--store", "a.zarr", "--model", "runs/latest", "--keep", "30%", "--step", 1, "--out", "new")
    rows = json.loads(hvae("bench", "data", *both, "--quality", "50", "--json"))["rows"]
    model, store = rows[:2]
    assert (model["kind"], store["kind"]) == ("model", "store")
    assert store["psnr"] == pytest.approx(model["psnr"], abs=1e-3)
    assert sorted(path.name for path in Path("new").iterdir()) == ["bench.csv", "bench.json", "bench.png"]


@pytest.mark.usefixtures("blank_pictures")
def test_splits_and_numbers_of_images(work, hvae):
    for arguments, count in ((("--split", "train"), 16), (("--images", 3), 3)):
        out = json.loads(hvae("bench", "data", "--step", 1, "--quality", 50, "--json", *arguments))
        assert out["about"]["images"] == count


@pytest.mark.usefixtures("blank_pictures")
def test_held_out_images_of_their_own(work, hvae):
    Path("data/val").rename("others")
    few = ("--step", 1, "--quality", 50, "--keep", "30%")
    out = hvae("bench", "data", "--val", "others", *few, "--out", "others/new")
    assert "8 held-out images" in out
    assert "8 held-out images" in hvae("bench", "data", "--val", "others", *few), "the plot is no image"


@pytest.mark.parametrize(
    ("code", "arguments", "sentence"),
    [
        (1, ("missing",), "there is no missing; give a folder of images"),
        (1, ("data", "--model", "data"), "data is not a run: .*config.json"),
        (1, ("data", "--store", "none.zarr"), "there is no store .*none.zarr"),
        (2, ("data", "--step", "0"), "--step is '0'; give numbers above 0"),
        (2, ("data", "--step", "1,,2"), "--step is ''; give numbers above 0"),
        (2, ("data", "--step", "1e30"), "the quantiser step is 1e.30; "),
        (2, ("data", "--quality", "50,101"), "--quality is '101'; give numbers from 1 to 100"),
        (2, ("data", "--keep", "none"), "no cutoff is asked for; give --keep"),
        (2, ("data", "--images", 0), "--images is 0; "),
        (2, ("data", "--val", "a", "--split", "all"), "--val a is .*--split all; leave one of them out"),
        (1, ("data", "--split", "test"), "no image in data is in a folder test/"),
        (1, ("data", "--out", "data"), "data is a folder of the images data; give a new folder"),
    ],
)
def test_bench_refuses(work, capsys, code, arguments, sentence):
    found, out, err = call(capsys, "bench", *arguments)
    assert (found, out) == (code, ""), err
    assert re.match(f"hvae-codec: {sentence}", err.splitlines()[-1])
    assert not Path("runs/latest/analysis/bench.csv").exists()
