"""Nothing held out is trained on, in any container, nor with held-out images of their own (`--val`)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from hvae_codec import open_images, open_store
from hvae_codec.config import Config
from hvae_codec.model.checkpoint import save_config
from hvae_codec.prune.kl_stats import load_kl_stats
from hvae_codec.train.batches import BatchStream
from hvae_codec_cli.app import main
from photos import save_png

pytestmark = pytest.mark.slow

Call = Callable[..., tuple[str, str]]

TRAIN, HELD_OUT = 50, 200
"""The one value of all pixels of an image; images differ in a few pixels."""

SMALL = ("--config", "tiny/config.json", "--no-tensorboard", "--steps", "2", "--out", "runs/a")


@pytest.fixture
def hvae(tiny_run: Path, tiny_config: Config, tmp_path: Path, monkeypatch, capsys, blank_pictures) -> Call:
    """`hvae(code, arguments)`: what a command says on standard output and standard error; runs/latest is a tiny run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    Path("runs").mkdir()
    shutil.copytree(tiny_run, "runs/tiny")
    Path("runs/latest").symlink_to("tiny")
    save_config(Path("tiny"), tiny_config)

    def call(code: int, *arguments: str) -> tuple[str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([*arguments, *(() if arguments[0] == "info" else ("--device", "cpu"))])
        out, errors = capsys.readouterr()
        assert (stopped.value.code or 0) == code, errors
        return out, errors

    return call


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The values of the pixels of all images that steps are taken on."""
    seen: set[int] = set()
    batch = BatchStream.batch

    def record(self: BatchStream, step: int):
        images = batch(self, step)
        seen.update(np.asarray(images)[..., 0, 0].ravel().tolist())
        return images

    monkeypatch.setattr(BatchStream, "batch", record)
    return seen


def constant(value: int, count: int) -> np.ndarray:
    """Images of one value but for a mark that tells them apart, uint8 [count, 3, 16, 16]."""
    images = np.full((count, 3, 16, 16), value, np.uint8)
    images[:, :, 5, 5] = np.arange(count)[:, None]
    return images


def save_folder(folder: Path, **parts: int) -> None:
    for name, value in parts.items():
        for i, image in enumerate(constant(value, 8)):
            save_png(folder / name / "cats" / f"{i}.png", image)


def save_zip(**parts: int) -> str:
    save_folder(Path("files"), **parts)
    shutil.make_archive("data", "zip", "files")
    return "data.zip"


def save_tars(**parts: int) -> str:
    save_folder(Path("files"), **parts)
    Path("data").mkdir()
    for name in parts:
        with tarfile.open(f"data/{name}-000.tar", "w") as archive:
            for file in sorted(Path("files", name, "cats").iterdir()):
                archive.add(file, f"{len(name)}-{file.name}")  # the shard's name alone says what it is
    return "data"


def save_npz(**parts: int) -> str:
    np.savez("data.npz", **{f"x_{name}": constant(value, 8).transpose(0, 2, 3, 1) for name, value in parts.items()})
    return "data.npz"


def save_parquet(**parts: int) -> str:
    save_folder(Path("files"), **parts)
    Path("data").mkdir()
    for name in parts:
        files = sorted(Path("files", name, "cats").iterdir())
        table = pyarrow.table({"image": [{"bytes": file.read_bytes()} for file in files]})
        pyarrow.parquet.write_table(table, f"data/{name}-00000-of-00001.parquet")
    return "data"


def save_data(**parts: int) -> str:
    save_folder(Path("data"), **parts)
    return "data"


@pytest.mark.parametrize("save", [save_data, save_zip, save_tars, save_npz, save_parquet])
def test_training_sees_none_of_test(hvae: Call, trained_on: set[int], save: Callable[..., str]):
    data = save(train=TRAIN, test=HELD_OUT)
    _, errors = hvae(0, "train", data, *SMALL)
    assert trained_on == {TRAIN}
    assert errors.startswith("train 8 (")
    assert ", held out 8 (" in errors


def test_training_sees_none_of_val(hvae: Call, trained_on: set[int]):
    """DATA's own test part is left out, too."""
    save_folder(Path("data"), train=TRAIN, test=HELD_OUT + 1)
    save_folder(Path("other"), train=HELD_OUT + 2, val=HELD_OUT)
    _, errors = hvae(0, "train", "data", "--val", "other", *SMALL)
    assert trained_on == {TRAIN}
    assert errors.startswith("train 8 (data), held out 8 (other); neither: 8 (others in data), 8 (others in other)\n")


def test_copies_of_training_images_are_counted(hvae: Call, trained_on: set[int]):
    """Under other names, and in a container of another kind."""
    save_folder(Path("data"), train=TRAIN)
    held_out = np.concatenate([constant(HELD_OUT, 6), constant(TRAIN, 8)[[5, 2]]])
    np.save("held-out.npy", held_out.transpose(0, 2, 3, 1))
    said = "warning: 2 of the 8 held-out images are copies of training images, as held-out.npy/00000006 is of data/"
    for more in ((), ("--dry-run",)):
        assert said in hvae(0, "train", "data", "--val", "held-out.npy", *SMALL, *more)[1]
    assert trained_on == {TRAIN}
    assert said in hvae(0, "analyze-kl", "data", "--val", "held-out.npy", "--keep", "50%")[1]
    np.save("held-out.npy", held_out[:6].transpose(0, 2, 3, 1))
    assert "copies" not in hvae(0, "train", "data", "--val", "held-out.npy", *SMALL[:-1], "runs/b", "--dry-run")[1]


def save_two(photo_patches) -> None:
    """train.npz and test.npz of photographs, none of which says what it is for by its keys."""
    pixels = photo_patches.transpose(0, 2, 3, 1)
    np.savez("train.npz", images=pixels[:16])
    np.savez("test.npz", images=pixels[16:])


def fingerprint(path: str, split: str = "all") -> str:
    return open_images(path, size=16, channels=3).split(split).fingerprint


def test_a_run_of_two_sources_continues_with_both(hvae: Call, photo_patches, monkeypatch):
    save_two(photo_patches)

    def interrupt(watch, metrics):
        if metrics.step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr("hvae_codec.train.progress.ProgressReporter.__call__", interrupt)
        _, errors = hvae(130, "train", "train.npz", "--val", "test.npz", *SMALL)
    origin = json.loads(Path("runs/a/origin.json").read_text())
    assert (origin["training"], origin["validation"]) == (fingerprint("train.npz"), fingerprint("test.npz"))
    assert "hvae-codec train train.npz --resume --out runs/a --val test.npz" in errors
    resume = ("--resume", "--out", "runs/a", "--no-tensorboard")
    assert "training images are not those" in hvae(1, "train", "train.npz", *resume)[1]
    np.savez("other.npz", images=photo_patches.transpose(0, 2, 3, 1)[16:20])
    assert "held-out images are not those" in hvae(1, "train", "train.npz", "--val", "other.npz", *resume)[1]
    out, errors = hvae(0, "train", "train.npz", "--val", "test.npz", *resume)
    assert "2 steps on 16 images" in out
    assert "held-out NELBO" in out
    assert "(8 images)" in out
    assert errors.startswith("train 16 (train.npz), held out 8 (test.npz)\n")
    warning = "was trained on all images in train.npz, so none of them is held out"
    assert warning in hvae(0, "evaluate", "train.npz", "--model", "runs/a")[1]
    assert warning not in hvae(0, "evaluate", "test.npz", "--split", "all", "--model", "runs/a")[1]


def test_ranked_on_one_and_measured_on_the_other(hvae: Call, photo_patches, blank_pictures):
    save_two(photo_patches)
    two = ("train.npz", "--val", "test.npz")
    out, errors = hvae(0, "analyze-kl", *two, "--keep", "50%", "--out", "analysis")
    assert errors.startswith("train 16 (train.npz), held out 8 (test.npz)\n")
    assert "8 held-out images, variates ranked on 16" in out
    about = json.loads(Path("analysis/cutoffs.json").read_text())["about"]
    assert (about["source"], about["ranking_source"]) == (fingerprint("test.npz"), fingerprint("train.npz"))
    assert (about["split"], about["held_out"]) == ("val", True)
    Path("runs/latest/analysis/kl_stats.npz").unlink()
    out, _ = hvae(0, "encode", "train.npz", "a.zarr", "--val", "test.npz", "--tolerance", "50%")
    assert "made one of 16 training images" in out
    assert "on 8 held-out images" in out
    assert load_kl_stats(Path("runs/latest/analysis/kl_stats.npz")).source == fingerprint("train.npz")
    assert open_store("a.zarr").metadata.source.fingerprint == fingerprint("train.npz")
    hvae(0, "encode", "train.npz", "b.zarr", "--val", "test.npz", "--keep", "50%", "--split", "val")
    assert open_store("b.zarr").metadata.source.fingerprint == fingerprint("test.npz")


def test_pruned_and_compared_with_two_sources(hvae: Call, photo_patches):
    save_two(photo_patches)
    out, errors = hvae(
        0, "prune", "train.npz", "--val", "test.npz", "--keep", "50%", "--steps", "1", "--no-tensorboard"
    )
    assert errors.startswith("train 16 (train.npz), held out 8 (test.npz)\n")
    assert "8 held-out images" in out
    origin = json.loads(Path("runs/tiny-pruned/origin.json").read_text())
    assert (origin["training"], origin["validation"]) == (fingerprint("train.npz"), fingerprint("test.npz"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train data --out runs/b --val ./data", "are the training images themselves"),
        ("analyze-kl data --out b --val data", "are the training images themselves"),
        ("encode data b.zarr --val nowhere", "there is no nowhere"),
        ("analyze-kl data --out b --val files --split test", "--val files is what the table is of"),
        ("prune data --keep 50% --out runs/b --val data/test", "all images in data"),
    ],
)
def test_two_sources_that_make_no_sense_are_refused(hvae: Call, arguments: str, message: str):
    save_folder(Path("data"), val=TRAIN, test=HELD_OUT)
    before = sorted(Path().rglob("*"))
    _, errors = hvae(1 if "no" in message.split()[:3] or "all images" in message else 2, *arguments.split())
    assert message in errors
    assert sorted(Path().rglob("*")) == before


# --- analyze-kl --split


def test_a_table_of_any_split(hvae: Call, photo_patches, blank_pictures):
    for i, part in enumerate(("train", "val", "test")):
        for j, patch in enumerate(photo_patches[8 * i : 8 * i + 8]):
            save_png(Path("data", part, f"{j}.png"), patch)
    shown = {"test": "8 held-out images", "all": " 24 images", "train": "8 training images"}
    for split, words in shown.items():
        out, _ = hvae(0, "analyze-kl", "data", "--split", split, "--keep", "50%", "--out", split)
        assert f"{words}, variates ranked on 8" in out
        assert (f"(--split {split})" in out) == (split in ("all", "train"))
        about = json.loads(Path(split, "cutoffs.json").read_text())["about"]
        assert (about["split"], about["source"]) == (split, fingerprint("data", split))
        assert about["ranking_source"] == fingerprint("data", "train")
        page = Path(split, "report.html").read_text(encoding="utf-8")
        assert ("held-out" in page.lower()) == (split == "test")
        assert split in page


def test_a_file_of_test_images_alone_is_measured_whole(hvae: Call, photo_patches, blank_pictures):
    save_two(photo_patches)
    hvae(0, "analyze-kl", "train.npz", "--keep", "50%", "--out", "a")
    ranking = json.loads(Path("a/cutoffs.json").read_text())["about"]["ranking_source"]
    out, _ = hvae(0, "analyze-kl", "test.npz", "--split", "all", "--keep", "50%", "--out", "b")
    about = json.loads(Path("b/cutoffs.json").read_text())["about"]
    assert (about["images"], about["source"]) == (8, fingerprint("test.npz"))
    assert about["ranking_source"] == ranking  # none of the measured images was ranked on
    assert "Ranking by KL" not in out


# --- --splits none


def test_later_commands_take_splits_from_the_run_and_the_store(hvae: Call, photo_patches):
    for i, patch in enumerate(photo_patches):
        save_png(Path("data", ("cats", "dogs", "test")[i % 3], f"{i:02d}.png"), patch)
    odd = "test/ was taken for 8 images to hold out, and cats/, dogs/ beside it for classes"
    _, errors = hvae(0, "train", "data", *SMALL, "--out", "runs/auto")
    assert errors.startswith("train 16 (outside test/), held out 8 (test/)\n")
    assert odd in errors
    _, errors = hvae(0, "train", "data", *SMALL, "--splits", "none")
    assert "(a tenth, chosen by a hash of their names)" in errors
    assert odd not in errors
    first = errors.splitlines()[0]
    assert json.loads(Path("runs/a/origin.json").read_text())["preprocessing"] == {"splits": "none"}
    assert "--splits none" in hvae(0, "info", "runs/a")[0]
    for command in (
        ("train", "data", "--resume", "--out", "runs/a", "--steps", "3", "--no-tensorboard"),
        ("encode", "data", "a.zarr", "--keep", "50%", "--model", "runs/a"),
        ("evaluate", "data", "--model", "runs/a"),
    ):
        assert hvae(0, *command)[1].startswith(first)
    store = open_store("a.zarr")
    assert store.preprocessing == {"splits": "none"}
    assert {*store.labels} == {"cats", "dogs", "test"}
    save_png(Path("more/test/x.png"), photo_patches[0])
    _, errors = hvae(0, "append", "more", "a.zarr")
    assert errors.startswith("train 1; no image is held out")
    assert open_store("a.zarr").labels[-1] == "test"
    assert open_store("a.zarr").preprocessing == {"splits": "none"}
    for arguments, made in (
        ("evaluate data --model runs/a --splits auto", "runs/a was begun with --splits none, not auto"),
        ("evaluate data --model runs/auto --splits none", "runs/auto was begun with --splits auto, not none"),
        ("append data a.zarr --splits auto", "a.zarr was made with --splits none, not auto"),
    ):
        assert f"{made}; leave out --splits" in hvae(2, *arguments.split())[1]
    shards = [path for path in sorted(Path("a.zarr").glob("z*/c/**/*")) if path.is_file()]
    shards[0].write_bytes(b"damaged")
    shutil.copytree("more", "data", dirs_exist_ok=True)  # a damaged row group has images of both commands
    assert hvae(0, "repair", "a.zarr", "data")[1].startswith("train 22, held out 3 (a tenth")
