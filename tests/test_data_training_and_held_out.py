"""Training images and held-out ones: of one source by its splits, or of two sources that share nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from hvae_codec.data.sources import as_source, open_images
from hvae_codec.data.splits import is_held_out
from hvae_codec.data.training_and_held_out import TrainingAndHeldOut
from hvae_codec.errors import DataError, UsageError
from hvae_codec.report.splits import splits_sentence
from photos import save_png


@pytest.fixture
def photos(photo_patches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`photos("a/train", "a/val")`: four photographs in each folder, no two the same, of different names."""
    monkeypatch.chdir(tmp_path)

    def save(*folders: str) -> None:
        for i, folder in enumerate(folders):
            for j, patch in enumerate(photo_patches[4 * i : 4 * i + 4]):
                save_png(Path(folder, f"{i}-{j}.png"), patch)

    return save


def pair(data: str, val: str, **options) -> TrainingAndHeldOut:
    first, second = (open_images(path, size=16, channels=3, **options) for path in (data, val))
    return TrainingAndHeldOut(first, second)


def test_one_source_is_its_splits(photos):
    photos("a/train", "a/val")
    source = open_images("a", size=16, channels=3)
    images = TrainingAndHeldOut(source)
    assert images.training.names == source.split("train").names
    assert images.held_out.names == source.split("val").names
    assert images.split("all") is source


def test_all_of_both_if_neither_has_splits(photos):
    photos("a/cats", "b/cats")
    images = pair("a", "b")
    assert any(is_held_out(name) for name in [f"cats/{i}.png" for i in range(20)])
    assert (len(images.training), len(images.held_out)) == (4, 4)
    assert (images.training.held_out, images.held_out.held_out) == (False, True)
    assert splits_sentence(images) == "train 4 (a), held out 4 (b)"
    assert images.split("all") is images.data
    assert images.split("val").names == images.held_out.names


@pytest.mark.parametrize(
    ("folders", "expected", "sentence"),
    [
        (("a/train", "a/test", "b"), ("train/0", "2-"), "train 4 (a), held out 4 (b); neither: 4 (others in a)"),
        (("a/cats", "a/val", "b"), ("cats/0", "2-"), "train 4 (a), held out 4 (b); neither: 4 (others in a)"),
        (("a", "b/val", "b/test"), ("0-", "val/1"), "train 4 (a), held out 4 (b); neither: 4 (others in b)"),
        (("a", "b/train", "b/test"), ("0-", "test/2"), "train 4 (a), held out 4 (b); neither: 4 (others in b)"),
        (("a/train", "b/train"), ("train/0", "train/1"), "train 4 (a), held out 4 (b)"),
    ],
)
def test_nothing_that_either_holds_out_is_trained_on(photos, folders, expected, sentence):
    photos(*folders)
    images = pair("a", "b")
    assert {name[: len(expected[0])] for name in images.training.names} == {expected[0]}
    assert {name[: len(expected[1])] for name in images.held_out.names} == {expected[1]}
    assert (len(images.training), len(images.held_out)) == (4, 4)
    assert splits_sentence(images) == sentence


def test_without_training_images_there_is_an_error_when_they_are_needed(photos):
    photos("a/val", "b")
    images = pair("a", "b")
    assert not images.has_training
    assert splits_sentence(images).startswith("train none, held out 4 (b)")
    with pytest.raises(DataError, match="all images in a are held out"):
        _ = images.training


def test_splits_none_makes_all_of_both(photos):
    photos("a/train", "a/test", "b/train", "b/test")
    images = pair("a", "b", splits="none")
    assert (len(images.training), len(images.held_out)) == (8, 8)


@pytest.mark.parametrize("other", ["a", "./a", "link"])
def test_the_same_path_twice_is_refused(photos, other: str):
    photos("a/train", "a/val")
    Path("link").symlink_to("a")
    with pytest.raises(UsageError, match=r"the held-out images .* are the training images themselves"):
        pair("a", other)


def test_images_that_lie_in_both_are_refused(photos):
    photos("a/cats", "a/dogs")
    with pytest.raises(DataError, match=r"4 of the 4 held-out images, such as .*a/dogs/1-0\.png, are training images"):
        pair("a", "a/dogs")
    with pytest.raises(DataError, match=r"4 of the 8 held-out images"):
        pair("a/dogs", "a")


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_links_to_training_images_are_refused(photos, link):
    photos("a/cats", "b")
    for number in (1, 3):
        link(Path(f"a/cats/0-{number}.png").absolute(), Path(f"b/held-out-{number}.png"))
    with pytest.raises(
        DataError, match=r"2 of the 6 held-out images, such as b/held-out-1\.png, are training images in a"
    ):
        pair("a", "b")
    Path("b/held-out-1.png").unlink()
    Path("b/held-out-3.png").unlink()
    Path("b/dangling.png").symlink_to("nowhere")
    assert len(pair("a", "b").held_out) == 5


def test_a_val_folder_inside_of_data_is_not_shared(photos):
    photos("a/cats", "a/val")
    assert pair("a", "a/val").held_out.names == ("1-0.png", "1-1.png", "1-2.png", "1-3.png")


def test_archives_that_are_in_both_are_refused(photos):
    photos("files/x", "other/y")
    Path("a").mkdir()
    for name in ("files", "other"):
        shutil.make_archive(f"a/{name}", "tar", name)
    Path("b").mkdir()
    Path("b/files.tar").symlink_to(Path("a/files.tar").absolute())
    with pytest.raises(DataError, match="4 of the 4 held-out images"):
        pair("a", "b")
    assert len(pair("a/files.tar", "a/other.tar").training) == 4


def test_copies_are_refused(photos, photo_patches):
    photos("a/cats")
    shutil.copytree("a/cats", "b/held-out-cats")
    save_png(Path("b/new.png"), photo_patches[20])
    with pytest.raises(DataError, match=r"b/held-out-cats/0-0\.png is the same image as a/cats/0-0\.png"):
        pair("a", "b")
    np.save("x.npy", photo_patches.transpose(0, 2, 3, 1))
    shutil.copy("x.npy", "y.npy")
    with pytest.raises(DataError, match=r"y\.npy/00000000 is the same image"):
        pair("x.npy", "y.npy")


def test_other_images_of_the_same_names_are_not_refused(photo_patches, tmp_path: Path):
    """Nor are they if a few are the same: a blank image may be in any data set."""
    pixels = photo_patches.transpose(0, 2, 3, 1).copy()
    pixels[[3, 15]] = 255
    np.savez(tmp_path / "train.npz", images=pixels[:12])
    np.savez(tmp_path / "test.npz", images=pixels[12:])
    images = pair(str(tmp_path / "train.npz"), str(tmp_path / "test.npz"))
    assert (len(images.training), len(images.held_out)) == (12, 12)
    assert len(TrainingAndHeldOut(as_source(photo_patches[:12]), as_source(photo_patches[12:])).training) == 12


def test_files_of_one_set_cannot_be_told_apart(photo_patches, tmp_path: Path):
    for i, name in enumerate(("train_data_batch_1", "train_data_batch_2", "val_data")):
        planes = photo_patches[8 * i : 8 * i + 8].reshape(8, -1)
        np.savez(tmp_path / f"{name}.npz", data=planes, labels=np.arange(8))
    with pytest.raises(DataError, match=r"are files of one set"):
        pair(str(tmp_path), str(tmp_path / "train_data_batch_2.npz"))


def test_a_broken_image_is_named_when_it_is_needed(photos):
    photos("a", "b")
    for folder in ("a", "b"):
        Path(folder, "broken.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"a/broken\.png"):
        pair("a", "b").training.read(range(5))


@pytest.mark.parametrize("splits", ["auto", "none"])
@pytest.mark.parametrize(("unusable", "stands_in"), [("val", "held out"), ("train", "trained on")])
def test_no_other_images_stand_in_for_a_split_that_cannot_be_used(photos, unusable: str, stands_in: str, splits: str):
    photos("a/train", "a/val", "a/test", "a/others")
    for file in Path("a", unusable).iterdir():
        file.write_bytes(b"broken")
    if splits == "none":
        source = open_images("a", size=16, channels=3, skip_unusable=True, splits=splits)
        assert len(source) == 12
        return
    with pytest.raises(
        DataError, match=rf"none of the 4 images in {unusable}/ of a .*broken.*{stands_in}.*by themselves"
    ):
        open_images("a", size=16, channels=3, skip_unusable=True)
    save_png(Path("a", unusable, "whole.png"), open_images("a/test", size=16, channels=3).read([0])[0])
    part = open_images("a", size=16, channels=3, skip_unusable=True).split(unusable)
    assert [*part.names] == [f"{unusable}/whole.png"]
