"""A run that continues notices images that were edited since, without reading all of them."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from hvae_codec import open_images
from hvae_codec.config import with_settings
from hvae_codec.errors import DataError
from hvae_codec.train.loop import TrainOptions, start_run, train
from hvae_codec.train.seen_images import IMAGES_FILE, SeenImages
from photos import save_png

LONG_AGO = 10**18


@pytest.fixture
def folder(photo_patches, tmp_path) -> Path:
    for i, patch in enumerate(photo_patches):
        file = tmp_path / "data" / ("val" if i < 5 else "train") / f"{i:02d}.png"
        save_png(file, patch)
        age(file)
    return tmp_path / "data"


def age(file: Path, to: int = LONG_AGO) -> None:
    os.utime(file, ns=(to, to))


def edit(file: Path) -> Path:
    """Change the last byte of an image file, which Pillow does not look at."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    return file


def parts(data: Path):
    source = open_images(data, size=16, channels=3)
    return source.split("train"), source.split("val")


def go_on(config, data: Path, steps: int, **options) -> list[int]:
    """Train up to so many steps; the numbers of images whose bytes were read to compare them."""
    run, read = data.parent / "run", []
    config = start_run(run, with_settings(config, [f"train.steps={steps}"]), resume=(run / "config.json").exists())
    given = TrainOptions(save_every=2, validation_images=5, **options)
    train(run, config, *parts(data), given, on_read=lambda done, total: read.append((done, total)))
    return [total for done, total in read if done == total][:-1]  # the last one is reading into memory


@pytest.mark.slow
@pytest.mark.usefixtures("without_ctimes")
def test_edited_images_are_named(tiny_config, folder):
    assert go_on(tiny_config, folder, 2) == []
    assert go_on(tiny_config, folder, 4) == []  # size and time are as they were
    for split, number in (("train", 9), ("val", 3)):
        file = edit(folder / split / f"{number:02d}.png")
        which = {"train": "training", "val": "held-out"}[split]
        with pytest.raises(DataError, match=rf"the {which} image {split}/{number:02d}\.png was .*--allow-other-data"):
            go_on(tiny_config, folder, 6)
        age(file, to=LONG_AGO + 1)
        for _ in range(2):  # the second time by what is remembered
            with pytest.raises(DataError, match=rf"{number:02d}\.png"):
                go_on(tiny_config, folder, 6)
        age(edit(file))
    go_on(tiny_config, folder, 6)
    file = edit(folder / "train/11.png")
    age(file)
    assert go_on(tiny_config, folder, 8) == []  # nothing tells, but the bytes
    edit(file)
    age(file)


@pytest.mark.slow
@pytest.mark.usefixtures("without_ctimes")
def test_check_reads_all_and_other_data_are_what_was_seen_then(tiny_config, folder):
    go_on(tiny_config, folder, 2)
    file = edit(folder / "train/11.png")
    age(file)
    with pytest.raises(DataError, match=r"train/11\.png was changed"):
        go_on(tiny_config, folder, 4, check=True)
    assert go_on(tiny_config, folder, 4, check=True, other_data=True) == [19, 5]
    assert go_on(tiny_config, folder, 6, check=True) == [19, 5]


def test_only_images_that_were_read_are_known(folder, tmp_path):
    training, validation = parts(folder)
    training.read([3, 4])
    seen = SeenImages(tmp_path, training, validation)
    seen.save()
    edit(folder / training.names[5])
    SeenImages(tmp_path, *parts(folder)).check(other_data=False)
    edit(folder / training.names[4])
    edit(folder / training.names[3])
    with pytest.raises(DataError, match=rf"{training.names[3]} and 1 others were changed"):
        SeenImages(tmp_path, *parts(folder)).check(other_data=False)
    (tmp_path / IMAGES_FILE).write_bytes((tmp_path / IMAGES_FILE).read_bytes()[:-40])  # damaged: nothing is known
    SeenImages(tmp_path, *parts(folder)).check(other_data=False)


def test_what_was_known_is_not_forgotten(folder, tmp_path):
    for some in ([0, 1], [1, 2]):
        training, validation = parts(folder)
        seen = SeenImages(tmp_path, training, validation)
        training.read(some)
        seen.save()
    with np.load(tmp_path / IMAGES_FILE) as arrays:
        assert np.flatnonzero(arrays["training"] >= 0).tolist() == [0, 1, 2]
        assert (arrays["held-out"] < 0).all()
    before = (tmp_path / IMAGES_FILE).stat().st_mtime_ns
    seen.save()
    assert (tmp_path / IMAGES_FILE).stat().st_mtime_ns == before


def test_the_cache_is_written_a_few_times_in_an_epoch(folder, tmp_path, monkeypatch):
    """For it has all names; the run's own file is written each time."""
    remembered: list[int] = []
    training, validation = parts(folder)
    seen = training.container.seen
    monkeypatch.setattr(
        "hvae_codec.train.seen_images.remember_content", lambda source: remembered.append(int(seen.is_checked.sum()))
    )
    ours = SeenImages(tmp_path, training, validation)
    validation.read(range(5))
    for i in range(19):
        training.read([i])
        ours.save()
        with np.load(tmp_path / IMAGES_FILE) as arrays:
            assert (arrays["training"] >= 0).sum() == i + 1
    assert remembered == [6, 12, 24]


def test_another_set_of_images_is_not_compared(folder, photo_patches, tmp_path):
    training, validation = parts(folder)
    training.read([0, 1, 2])
    SeenImages(tmp_path, training, validation).save()
    save_png(folder / "train" / "00a.png", photo_patches[0])
    SeenImages(tmp_path, *parts(folder)).check(other_data=False)


def test_a_zip_says_it_without_reading(folder, tmp_path, monkeypatch):
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder))
    SeenImages(tmp_path, *parts(path)).save()
    with monkeypatch.context() as patch:
        patch.setattr("hvae_codec.data.zips.Zip.content_of", lambda *_: pytest.fail("it was read"))
        SeenImages(tmp_path, *parts(path)).check(other_data=False)
    content = bytearray(path.read_bytes())
    content[path.stat().st_size // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="CRC-32"):
        SeenImages(tmp_path, *parts(path)).check(other_data=False, check=True)
