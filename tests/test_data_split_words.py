"""With splits="none", words such as test in names are classes: in every container, a tenth by hash is held out."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from hvae_codec import ImageSource, open_images
from hvae_codec.data.preprocessing import Preprocessing
from hvae_codec.data.splits import is_held_out
from hvae_codec.errors import DataError, UsageError
from photos import save_png

COUNT = 24  # some of these are held out by hash, whatever the names


def save_classes(folder: Path, patches: np.ndarray) -> None:
    """Two classes; one is called test."""
    for i, patch in enumerate(patches):
        save_png(folder / ("cats", "test")[i % 2] / f"{i:02d}.png", patch)


def save_zip(folder: Path, patches: np.ndarray) -> Path:
    save_classes(folder / "x", patches)
    import shutil

    return Path(shutil.make_archive(str(folder / "x"), "zip", folder / "x"))


def save_tars(folder: Path, patches: np.ndarray) -> Path:
    """A class in each tar, whose images have a label beside them or are in a folder."""
    save_classes(folder / "files", patches)
    (folder / "tars").mkdir()
    for name in ("cats", "test"):
        with tarfile.open(folder / "tars" / f"{name}.tar", "w") as archive:
            for file in sorted((folder / "files" / name).iterdir()):
                archive.add(file, f"{name}/{file.name}")
                if file.stem in ("00", "01"):
                    info = tarfile.TarInfo(f"{name}/{file.stem}.cls")
                    info.size = 1
                    archive.addfile(info, io.BytesIO(b"7"))
    return folder / "tars"


def save_npz(folder: Path, patches: np.ndarray) -> Path:
    pixels = patches.transpose(0, 2, 3, 1)
    np.savez(folder / "x.npz", x_train=pixels[::2], x_test=pixels[1::2])
    return folder / "x.npz"


def save_parquet(folder: Path, patches: np.ndarray) -> Path:
    save_classes(folder / "files", patches)
    (folder / "tables").mkdir()
    for name in ("cats", "test"):
        images = [{"bytes": file.read_bytes()} for file in sorted((folder / "files" / name).iterdir())]
        table = pyarrow.table({"image": images, "label": [name] * len(images)})
        pyarrow.parquet.write_table(table, folder / "tables" / f"{name}-0.parquet")
    return folder / "tables"


def save_folder(folder: Path, patches: np.ndarray) -> Path:
    save_classes(folder / "x", patches)
    return folder / "x"


@pytest.mark.parametrize("save", [save_folder, save_zip, save_tars, save_npz, save_parquet])
def test_words_are_classes_in_every_container(save: Callable[..., Path], photo_patches, tmp_path: Path):
    path = save(tmp_path, photo_patches[:COUNT])
    by_words, by_hash = (open_images(path, size=16, channels=3, splits=splits) for splits in ("auto", "none"))
    assert by_words.names == by_hash.names
    assert len(by_words.split("test")) == COUNT // 2
    assert by_hash.split("val").names == tuple(name for name in by_hash.names if is_held_out(name))
    assert sorted([*by_hash.split("train").names, *by_hash.split("val").names]) == list(by_hash.names)
    assert by_hash.fingerprint == by_words.fingerprint  # the images are the same
    with pytest.raises(DataError, match=r"--splits none, so no image is said to be for testing"):
        by_hash.split("test")
    assert by_hash.before_skipping.split("val").names == by_hash.split("val").names


@pytest.mark.parametrize("save", [save_folder, save_zip])
def test_labels_are_as_if_there_were_no_split_folders(save: Callable[..., Path], photo_patches, tmp_path: Path):
    def labels(source: ImageSource) -> set[str]:
        return {*source.labels}

    path = save(tmp_path, photo_patches[:COUNT])
    assert labels(open_images(path, size=16, channels=3)) == {"cats", ""}
    assert labels(open_images(path, size=16, channels=3, splits="none")) == {"cats", "test"}


def test_stated_labels_stay_stated(photo_patches, tmp_path: Path):
    tars = open_images(save_tars(tmp_path, photo_patches[:COUNT]), size=16, channels=3, splits="none")
    assert tars.labels[0] == tars.labels[COUNT // 2] == "7"
    assert {*tars.labels} == {"7", "cats", "test"}
    folder = tmp_path / "files"
    stated = [[name, 3] for name in open_images(folder, size=16, channels=3).names]
    (folder / "dataset.json").write_text(json.dumps({"labels": stated}))
    assert {*open_images(folder, size=16, channels=3, splits="none").labels} == {"3"}


def test_a_remembered_listing_knows_which_labels_are_folders(monkeypatch, photo_patches, tmp_path: Path):
    monkeypatch.setattr("hvae_codec.data.archive_index.REMEMBERED_FROM", 1)
    path = save_tars(tmp_path, photo_patches[:COUNT])
    first, again = (open_images(path, size=16, channels=3, splits="none") for _ in range(2))
    assert first.labels == again.labels
    assert {*again.labels} == {"7", "cats", "test"}


def test_splits_are_never_changed_later():
    for before, given in ((Preprocessing(), "none"), (Preprocessing(splits="none"), "auto")):
        said = rf"x was begun with --splits {before.splits}, not {given}; leave out.*--split all"
        with pytest.raises(UsageError, match=said):
            before.with_given({"splits": given}, "x was begun with")
        assert before.with_given({"splits": before.splits}, "") == before.with_given({}, "") == before
        with pytest.raises(DataError, match=rf"--splits {before.splits}, and .* splits='{given}'"):
            before.check_same(Preprocessing(splits=given), "x was begun with")
    assert Preprocessing(splits="none").to_dict() == {"splits": "none"}
    assert Preprocessing(splits="none").pixel_options == {}
    with pytest.raises(UsageError, match="--splits is 'off'; give auto or none"):
        Preprocessing(splits="off")
