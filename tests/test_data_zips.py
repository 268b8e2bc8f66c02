from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from hvae_codec.data.sources import ImageSource, open_images
from hvae_codec.errors import DataError
from photos import save_png

NAMES = ["train/cats/1.png", "train/cats/2.png", "train/dogs/3.png", "val/cats/4.png", "val/dogs/é.png"]


@pytest.fixture
def folder(tmp_path: Path, photo_patches) -> Path:
    for name, patch in zip(NAMES, photo_patches, strict=False):
        save_png(tmp_path / "data" / name, patch)
    (tmp_path / "data" / "notes.txt").write_text("no image")
    return tmp_path / "data"


def zipped(folder: Path, method: int = zipfile.ZIP_STORED, **texts: str) -> Path:
    """Zip all files of `folder`, in reverse order, and others with these texts."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(folder.rglob("*"), reverse=True):
            archive.write(file, file.relative_to(folder))
        for name, text in texts.items():
            archive.writestr(name, text)
    return path


def opened(path: Path, **options: bool) -> ImageSource:
    return open_images(path, size=16, channels=3, **options)


def assert_equal(one: ImageSource, other: ImageSource) -> None:
    assert (one.names, one.labels) == (other.names, other.labels)
    np.testing.assert_array_equal(one.read(range(len(one))), other.read(range(len(other))))
    for part in ("train", "val", "test"):
        np.testing.assert_array_equal(one.splits.indices(part), other.splits.indices(part))
    assert one.splits.folders == other.splits.folders
    assert one.source_bytes == other.source_bytes


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_is_what_its_folder_is(folder: Path, method: int):
    source = opened(zipped(folder, method))
    assert_equal(source, opened(folder))
    assert source.names == tuple(NAMES)
    assert [len(batch) for batch in source.batches(2)] == [2, 2, 1]


def test_hidden_files_and_results_are_passed_over_as_in_folders(folder: Path):
    for name in (
        "run/config.json",
        "run/model.safetensors",
        "new.partial/deep/x.png",
        "__MACOSX/._1.png",
        ".git/1.png",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"no image")
    shutil.copy(folder / NAMES[0], folder / "run" / "sample.png")
    source = opened(zipped(folder))
    assert_equal(source, opened(folder))
    assert source.container.passed_over == opened(folder).container.passed_over == ["new.partial", "run"]


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_labels_of_dataset_json(folder: Path, kind: str):
    labels = json.dumps(
        {"labels": [["train/cats/1.png", 3], ["train/cats/2.png", 0], ["gone.png", 7], [NAMES[4], [0.5]]]}
    )
    (folder / "dataset.json").write_text(labels)
    path = folder if kind == "folder" else zipped(folder)
    assert opened(path).labels == ("3", "0", "", "", "")
    (folder / "dataset.json").write_text('{"name": "mine"}')
    assert opened(folder).labels[0] == opened(zipped(folder)).labels[0] == "cats"
    (folder / "dataset.json").write_text('{"labels": null}')
    assert set(opened(zipped(folder)).labels) == {""}
    (folder / "dataset.json").write_text('{"labels": [1')
    with pytest.raises(DataError, match=r"dataset\.json.* cannot be read .*remove it"):
        opened(folder if kind == "folder" else zipped(folder))


def test_a_fingerprint_sees_the_content_but_not_how_it_is_packed(folder: Path):
    first = opened(zipped(folder)).fingerprint
    assert opened(zipped(folder, zipfile.ZIP_DEFLATED)).fingerprint == first
    content = bytearray((folder / NAMES[0]).read_bytes())
    content[-1] ^= 1
    (folder / NAMES[0]).write_bytes(content)
    assert opened(zipped(folder)).fingerprint != first


def test_damage_is_named_and_can_be_left_out(folder: Path):
    path = zipped(folder)
    content, image = bytearray(path.read_bytes()), (folder / NAMES[1]).read_bytes()
    content[content.index(image) + len(image) - 20] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"data\.zip/train/cats/2\.png is broken.*CRC-32.*--skip-unusable"):
        opened(path).read([1])
    assert opened(path, skip_broken=True).skipped == {"train/cats/2.png": "broken"}


def test_a_truncated_zip_is_refused(folder: Path):
    path = zipped(folder)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"data\.zip .*truncated.*again"):
        opened(path)


def test_a_zip_that_changes_while_it_is_read_is_an_error(folder: Path):
    path = zipped(folder)
    source = opened(path)
    os.utime(path, ns=(0, 0))
    with pytest.raises(DataError, match=r"data\.zip was changed while it was read"):
        source.read([0])


def zip_of(path: Path, name: str, **attributes: object) -> Path:
    """Write a zip of one image whose entry has these attributes."""
    member = zipfile.ZipInfo(name)
    for attribute, value in attributes.items():
        setattr(member, attribute, value)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, b"x")
    return path


@pytest.mark.parametrize(
    ("name", "attributes", "message"),
    [
        ("../1.png", {}, r"'\.\./1\.png', which leads out of it"),
        ("/etc/1.png", {}, r"leads out of it"),
        ("C:/1.png", {}, r"leads out of it"),
        ("1.png", {"external_attr": 0o120777 << 16}, r"x\.zip/1\.png is a link; unpack"),
        ("1.png", {"compress_type": zipfile.ZIP_LZMA}, r"x\.zip/1\.png is packed by method 14"),
        ("notes.txt", {}, r"there are no images in .*x\.zip"),
    ],
)
def test_members_that_cannot_be_read_or_stored(tmp_path: Path, name: str, attributes: dict, message: str):
    with pytest.raises(DataError, match=message):
        opened(zip_of(tmp_path / "x.zip", name, **attributes))


def test_encrypted_and_wrongly_named_members(tmp_path: Path):
    path = zip_of(tmp_path / "x.zip", "1.png")
    content = path.read_bytes()
    central = content.index(b"PK\1\2")
    path.write_bytes(content[: central + 8] + b"\1" + content[central + 9 :])
    with pytest.raises(DataError, match=r"1\.png is encrypted"):
        opened(path)
    path.write_bytes(content.replace(b"1.png", b"\xff.png"))
    with pytest.raises(DataError, match=r"not UTF-8"):
        opened(path)


def test_names_in_utf8_without_the_mark(tmp_path: Path):
    path = zip_of(tmp_path / "x.zip", "12.png")
    path.write_bytes(path.read_bytes().replace(b"12.png", "é.png".encode()))
    assert opened(path).names == ("é.png",)


def test_a_name_twice_is_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a/1.png", b"x")
        archive.writestr("a/2.png", b"x")
    content = (tmp_path / "x.zip").read_bytes()
    (tmp_path / "x.zip").write_bytes(content.replace(b"a/2.png", b"a/1.png"))
    with pytest.raises(DataError, match=r"a/1\.png twice"):
        opened(tmp_path / "x.zip")


def test_bombs_are_not_unpacked(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.png", bytes(100_000))
    content = (tmp_path / "x.zip").read_bytes()
    size, large = (100_000).to_bytes(4, "little"), (2**30).to_bytes(4, "little")
    for declared, message in ((large, "1,073,741,824 bytes"), (b"\1\0\0\0", "not of the size")):
        (tmp_path / "x.zip").write_bytes(content.replace(size, declared))
        with pytest.raises(DataError, match=rf"1\.png .*{message}.*remove"):
            opened(tmp_path / "x.zip").read([0])


def test_a_large_zip_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for i in range(1000):
            archive.writestr(f"cats/{i:04d}.png", b"x")
    first = opened(tmp_path / "x.zip")
    with monkeypatch.context() as patch:
        patch.delattr(zipfile.ZipFile, "infolist")
        again = opened(tmp_path / "x.zip")
    assert (again.names, again.labels, again.fingerprint) == (first.names, first.labels, first.fingerprint)
    (remembered,) = (tmp_path / "cache").rglob("*.npz")
    remembered.write_bytes(remembered.read_bytes()[:500])
    assert opened(tmp_path / "x.zip").names == first.names
    os.utime(tmp_path / "x.zip", ns=(0, 0))
    assert opened(tmp_path / "x.zip").names == first.names
    assert len([*(tmp_path / "cache").rglob("*.npz")]) == 2
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x.zip"))  # no folder
    assert opened(tmp_path / "x.zip").names == first.names


def test_folders_that_windows_wrote_say_what_is_held_out(folder: Path):
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for name in NAMES:
            member = zipfile.ZipInfo("x")
            member.filename, member.create_system = name.replace("/", "\\"), 0
            archive.writestr(member, (folder / name).read_bytes())
    assert_equal(opened(path), opened(folder))


def test_a_name_with_a_zero_byte_is_refused(tmp_path: Path):
    member = zipfile.ZipInfo("x")
    member.filename = "a\0b.png"
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(member, b"")
    with pytest.raises(DataError, match="which no file can be called"):
        opened(tmp_path / "a.zip")


def test_other_files_are_counted_as_in_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hvae_codec.data.archive_index.REMEMBERED_FROM", 1)
    for name in ("1.heic", "train/2.HEIC", "README", "dataset.json", "run/config.json", "run/model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    path = zipped(folder)
    expected = {".heic": 2, ".txt": 1, "": 1}
    assert opened(folder).container.other_files == expected
    assert opened(path).container.other_files == expected
    assert opened(path).container.other_files == expected  # as it is remembered


def test_a_dataset_json_of_another_kind_is_passed_over(folder: Path):
    before = opened(folder)
    for labels in (["cat", "dog"], {"0": "cat"}, [{"name": "cat"}]):
        (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
        assert_equal(opened(folder), before)
    (folder / "dataset.json").write_text('{"labels": [["train/cats/1.png", 3], 4]}')
    with pytest.raises(DataError, match="cannot be read as names and labels"):
        opened(folder)


def test_more_endings_are_listed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo_patches):
    save_png(tmp_path / "1.png", photo_patches[0])
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("1.png", "1.bmp"):
            archive.write(tmp_path / "1.png", name)
    monkeypatch.setattr("hvae_codec.data.archive_index.REMEMBERED_FROM", 1)
    for module in ("zips", "archive_index"):
        monkeypatch.setattr(f"hvae_codec.data.{module}.EXTENSIONS", (".png",))
    assert len(opened(tmp_path / "a.zip")) == 1
    for module in ("zips", "archive_index"):
        monkeypatch.setattr(f"hvae_codec.data.{module}.EXTENSIONS", (".png", ".bmp"))
    assert len(opened(tmp_path / "a.zip")) == 2
