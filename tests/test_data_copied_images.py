"""Held-out images that are training images under other names, or in a container of another kind, are found."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from hvae_codec.data import copied_images
from hvae_codec.data.copied_images import find_copies
from hvae_codec.data.sources import open_images
from hvae_codec.data.training_and_held_out import TrainingAndHeldOut
from hvae_codec.report.splits import copies_sentence
from photos import save_png


@pytest.fixture
def work(photo_patches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Training images in a/; in b/ two of them under other names, and three that are no training images."""
    monkeypatch.chdir(tmp_path)
    for i, patch in enumerate(photo_patches[:12]):
        save_png(Path("a/cats", f"{i:02d}.png"), patch)
    for name, i in (("x", 13), ("copy-1", 7), ("y", 14), ("copy-2", 2), ("z", 15)):
        save_png(Path("b", f"{name}.png"), photo_patches[i])
    return tmp_path


def pair(data: str, val: str) -> TrainingAndHeldOut:
    first, second = (open_images(path, size=16, channels=3) for path in (data, val))
    return TrainingAndHeldOut(first, second)


def copies(images: TrainingAndHeldOut) -> dict[str, str]:
    """Names of the held-out copies, and of what they are copies of."""
    found = find_copies(images.training, images.held_out)
    held_out, training = images.held_out.names.at(found.held_out), images.training.names.at(found.training)
    return dict(zip(held_out, training, strict=True))


EXPECTED = {"copy-1.png": "cats/07.png", "copy-2.png": "cats/02.png"}


def test_copies_under_other_names(work):
    assert copies(pair("a", "b")) == EXPECTED
    assert copies(pair("b", "a")) == {other: name for name, other in EXPECTED.items()}
    sentence = copies_sentence(pair("a", "b"))
    assert sentence.startswith("2 of the 5 held-out images are copies of training images, as b/copy-1.png is of a/cats")
    Path("b/copy-1.png").unlink()
    Path("b/copy-2.png").unlink()
    assert copies_sentence(pair("a", "b")) == ""
    assert copies_sentence(TrainingAndHeldOut(open_images("a", size=16, channels=3))) == ""


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_copies_in_an_archive(work, kind: str):
    shutil.make_archive("b", kind, "b")
    assert copies(pair("a", f"b.{kind}")) == EXPECTED


def test_copies_in_an_array(work, photo_patches):
    """By their pixels, as an array has no files."""
    pixels = photo_patches.transpose(0, 2, 3, 1)
    np.savez("held-out.npz", images=pixels[[13, 7, 14, 2, 15]])
    assert copies(pair("a", "held-out.npz")) == {"00000001": "cats/07.png", "00000003": "cats/02.png"}
    np.save("train.npy", pixels[:12])
    assert copies(pair("train.npy", "b")) == {"copy-1.png": "00000007", "copy-2.png": "00000002"}
    assert copies(pair("train.npy", "held-out.npz")) == {"00000001": "00000007", "00000003": "00000002"}


def test_copies_in_parquet_files(work):
    files = [Path("b", f"{name}.png").read_bytes() for name in ("x", "copy-1", "y")]
    parquet.write_table(pyarrow.table({"image": [{"bytes": file, "path": ""} for file in files]}), "b.parquet")
    assert [*copies(pair("a", "b.parquet")).values()] == ["cats/07.png"]


def test_images_that_cannot_be_decoded_are_no_copies(work, photo_patches):
    np.save("train.npy", photo_patches[:12].transpose(0, 2, 3, 1))
    for name in ("b/broken-1.png", "b/broken-2.png"):
        Path(name).write_bytes(b"broken")
    assert {*copies(pair("train.npy", "b"))} == {*EXPECTED}


def test_comparing_counts_nothing_as_used(cut_patches, tmp_path: Path):
    pixels = cut_patches(8, 20).transpose(0, 2, 3, 1)
    np.savez(tmp_path / "train.npz", pixels[:4])
    save_png(tmp_path / "b" / "copy.png", pixels[2].transpose(2, 0, 1))
    images = pair(str(tmp_path / "train.npz"), str(tmp_path / "b"))
    assert copies(images) == {"copy.png": "00000002"}
    assert images.training.resized == images.held_out.resized == 0


@pytest.mark.parametrize(("limit", "value"), [("LIMIT_BYTES", 1500), ("LIMIT_IMAGES", 4)])
def test_no_more_is_read_than_the_limits(work, monkeypatch, limit: str, value: int):
    monkeypatch.setattr(copied_images, limit, value)
    shutil.copytree("a/cats", "c")
    for number, file in enumerate(sorted(Path("c").iterdir())):
        file.rename(f"c/{number:02d}-renamed.png")
    images, read = pair("a", "c"), []
    found = find_copies(images.training, images.held_out, lambda done, total: read.append(total))
    assert 0 < len(found.held_out) < 12
    assert not found.is_complete
    assert max(read) <= 4
    assert copies_sentence(images).startswith("at least ")
    np.save("c.npy", images.training.read(range(12)).transpose(0, 2, 3, 1))
    assert not find_copies(images.training, open_images("c.npy", size=16, channels=3)).is_complete


def test_what_is_known_is_not_read(work, monkeypatch):
    for folder in ("a", "b"):
        shutil.make_archive(folder, "zip", folder)
    monkeypatch.setattr(copied_images, "LIMIT_IMAGES", 0)
    images = pair("a.zip", "b.zip")
    assert copies(images) == EXPECTED
    assert find_copies(images.training, images.held_out).is_complete


def test_equal_sizes_alone_make_no_copies(photo_patches, tmp_path: Path):
    for i, patch in enumerate(photo_patches[:10]):
        file = tmp_path / ("a" if i < 5 else "b") / f"{i}.png"
        save_png(file, patch)
        file.write_bytes(file.read_bytes().ljust(1200, b"\0"))
    assert copies(pair(str(tmp_path / "a"), str(tmp_path / "b"))) == {}
