"""Which images are trained on and held out, as commands say it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hvae_codec.data.splits import is_held_out
from hvae_codec_cli.app import main
from photos import save_png

pytestmark = pytest.mark.slow

Call = Callable[..., tuple[str, str]]


@pytest.fixture
def hvae(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, blank_pictures) -> Call:
    """`hvae(code, arguments)`: what a command says on standard output and standard error; runs/latest is a tiny run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    shutil.copytree(tiny_run, "runs/tiny")
    Path("runs/latest").symlink_to("tiny")

    def call(code: int, *arguments: str) -> tuple[str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([*arguments])
        out, errors = capsys.readouterr()
        assert (stopped.value.code or 0) == code, errors
        return out, errors

    return call


def save_photos(photo_patches, *folders: str) -> None:
    """Save eight photographs in each folder below `data`, none of which a hash holds out."""
    names = [name for name in (f"{i:02d}.png" for i in range(99)) if not is_held_out(name)][:8]
    for i, folder in enumerate(folders):
        for name, patch in zip(names, photo_patches[8 * i :], strict=False):
            save_png(Path("data", folder, name), patch)


def test_no_figure_is_called_held_out_if_no_image_is(hvae: Call, photo_patches):
    save_photos(photo_patches, "")
    small = ("--preset", "tiny16", "--steps", "1", "--out", "runs/a", "--no-tensorboard", "--device", "cpu")
    out, errors = hvae(0, "train", "data", *small)
    assert "training NELBO" in out
    told = [errors]
    for command in (
        ("evaluate", "data"),
        ("encode", "data", "a.zarr", "--keep", "20%"),
        ("encode", "data", "b.zarr", "--tolerance", "50%"),
        ("analyze-kl", "data", "--keep", "20%", "--tolerance", "50%", "--out", "analysis"),
    ):
        more, errors = hvae(0, *command, "--device", "cpu")
        assert "8 training images" in more
        out, told = out + more, [*told, errors]
    assert all("train 8; no image is held out" in errors for errors in told)
    page = Path("analysis/report.html").read_text(encoding="utf-8")
    assert "held-out" not in (out + page).lower()
    assert "of training images" in page
    assert json.loads(Path("analysis/cutoffs.json").read_text(encoding="utf-8"))["about"]["held_out"] is False
    assert json.loads(hvae(0, "evaluate", "data", "--json")[0])["about"]["held_out"] is False


def test_test_folders_are_held_out_and_said(hvae: Call, photo_patches):
    save_photos(photo_patches, "cats/Train", "cats/test", "dogs/valid")
    neither = "train 8 (*/Train/), held out 8 (*/valid/); neither: 8 (*/test/)"
    out, errors = hvae(0, "encode", "data", "a.zarr", "--keep", "20%", "--split", "test", "--device", "cpu")
    assert neither in errors
    assert "on 8 held-out images" in out
    assert "a.zarr: 8 images" in out
    assert json.loads(hvae(0, "evaluate", "data", "--split", "test", "--json")[0])["about"]["images"] == 8


@pytest.mark.parametrize("command", [("train", "data", "--out", "runs/b"), ("analyze-kl", "data", "--out", "analysis")])
def test_a_data_set_without_training_images_is_refused(hvae: Call, photo_patches, command: tuple[str, ...]):
    save_photos(photo_patches, "val", "test")
    out, errors = hvae(1, *command, "--device", "cpu")
    assert out == ""
    assert "all images in data are held out (in val/ and test/)" in errors
    assert not Path(command[-1]).exists()


def test_a_split_without_images_is_refused_before_anything_is_measured(hvae: Call, photo_patches):
    save_photos(photo_patches, "train", "val")
    out, errors = hvae(1, "encode", "data", "a.zarr", "--split", "test", "--device", "cpu")
    assert out == ""
    assert "no image in data is in a folder test/" in errors
    assert "Ranking" not in errors
