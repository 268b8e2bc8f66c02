"""Folders that were taken for splits and may be classes are said, and usual layouts are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from hvae_codec.data.odd_layouts import OddLayout, find_odd_layouts
from hvae_codec.data.sources import open_images
from hvae_codec.report.splits import odd_layout_sentences


def names(*folders: str) -> list[str]:
    """Two images in each folder."""
    return [f"{folder}/{i}.png".lstrip("/") for folder in folders for i in range(2)]


@pytest.mark.parametrize(
    ("folders", "found"),
    [
        (("cats", "dogs", "test"), OddLayout("test/", "test", 2, ["cats/", "dogs/"])),
        (("cats", "dogs", "emus", "Dev"), OddLayout("Dev/", "val", 2, ["cats/", "dogs/", "emus/"])),
        (("boats", "cars", "train"), OddLayout("train/", "train", 2, ["boats/", "cars/"])),
        (("animals/cats", "animals/dogs", "animals/eval"), OddLayout("animals/eval/", "test", 2, ["cats/", "dogs/"])),
        (("cats", "dogs", "test", "birds/owls"), OddLayout("test/", "test", 2, ["cats/", "dogs/"])),
    ],
)
def test_a_class_that_is_called_like_a_split_is_odd(folders: tuple[str, ...], found: OddLayout):
    assert find_odd_layouts(names(*folders)) == [found]


@pytest.mark.parametrize(
    "folders",
    [
        ("cats", "dogs", "emus"),
        ("train", "test", "extra", "unlabelled"),
        ("train/cats", "train/dogs", "val/cats", "val/dogs"),
        ("cats", "dogs", "val", "test"),
        ("cats", "dogs", "test/cats", "test/dogs"),
        ("images", "test"),
        ("", "test"),
        ("cats/train", "cats/test", "dogs/train", "dogs/test"),
        ("mydata/train", "mydata/val", "mydata/masks", "mydata/extra"),
        ("train/cats", "train/dogs", "train/test"),  # the upper split counts: this one is known to be a class
        ("cats/test", "dogs/test", "cats", "dogs"),
        ("test",),
    ],
)
def test_usual_layouts_are_not_odd(folders: tuple[str, ...]):
    assert find_odd_layouts(names(*folders)) == []


def test_what_was_taken_for_what_is_said_and_overruled(tmp_path: Path):
    for name in names("cats", "dogs", "test"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    [sentence] = odd_layout_sentences(open_images(tmp_path, size=8, channels=3))
    assert "test/ was taken for 2 images to hold out" in sentence
    assert "cats/, dogs/ beside it" in sentence
    assert "--splits none" in sentence
    assert odd_layout_sentences(open_images(tmp_path, size=8, channels=3, splits="none")) == []


def test_a_class_train_is_said_to_have_no_class(tmp_path: Path):
    for name in names("boats", "cars", "train"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    source = open_images(tmp_path, size=8, channels=3)
    assert {*source.labels} == {"boats", "cars", ""}
    assert "train/ was taken for 2 images without a class" in odd_layout_sentences(source)[0]
    assert {*open_images(tmp_path, size=8, channels=3, splits="none").labels} == {"boats", "cars", "train"}
