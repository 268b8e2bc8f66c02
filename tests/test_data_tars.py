from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from hvae_codec.data.sources import ImageSource, open_images
from hvae_codec.data.training_and_held_out import TrainingAndHeldOut
from hvae_codec.errors import DataError
from hvae_codec.report.splits import splits_sentence
from photos import save_png

NAMES = ["train/cats/1.png", "train/cats/2.png", "train/dogs/3.png", "val/cats/4.png", "val/dogs/é.png"]


@pytest.fixture
def folder(tmp_path: Path, photo_patches) -> Path:
    for name, patch in zip(NAMES, photo_patches, strict=False):
        save_png(tmp_path / "data" / name, patch)
    return tmp_path / "data"


@pytest.fixture
def shards(tmp_path: Path, photo_patches) -> Path:
    """A folder of tars that webdataset wrote: three of training images with classes, one of held-out ones."""
    webdataset = pytest.importorskip("webdataset")
    (tmp_path / "shards").mkdir()
    for pattern, first, count in (("train-%03d.tar", 0, 6), ("val-%03d.tar", 6, 2)):
        with webdataset.ShardWriter(str(tmp_path / "shards" / pattern), maxcount=2, verbose=0) as writer:
            for i in range(first, first + count):
                pixels = photo_patches[i].transpose(1, 2, 0)
                writer.write({"__key__": f"{i:04d}", "png": pixels, "cls": i % 3, "txt": "a caption"})
    return tmp_path / "shards"


def opened(path: Path | str, **options: bool) -> ImageSource:
    return open_images(path, size=16, channels=3, **options)


def tar_of(path: Path, *members: tuple[str, bytes], **attributes: object) -> Path:
    """Write a tar of these files, whose entries have these attributes."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for attribute, value in attributes.items():
                setattr(info, attribute, value)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_tar_is_what_its_folder_is(folder: Path, form: int):
    save_png(folder / "train" / "cats" / f"{'x' * 200}.png", np.zeros((3, 16, 16), np.uint8))
    (folder / ".hidden.png").write_bytes(b"no image")
    with tarfile.open(folder.with_suffix(".tar"), "w", format=form) as archive:
        archive.add(folder, ".")
    tar, files = opened(folder.with_suffix(".tar")), opened(folder)
    assert (tar.names, tar.labels, tar.source_bytes) == (files.names, files.labels, files.source_bytes)
    np.testing.assert_array_equal(tar.read(range(len(tar))), files.read(range(len(files))))
    np.testing.assert_array_equal(tar.splits.val, files.splits.val)
    assert tar.splits.folders == files.splits.folders
    assert tar.fingerprint == files.fingerprint


@pytest.mark.parametrize("path", ["", "{train,val}-{000..000}.tar", "train-{000..002}.tar", "val-000.tar"])
def test_shards_of_webdataset(shards: Path, photo_patches, path: str):
    source = opened(shards / path)
    expected = {"": [*range(8)], "val-000.tar": [6, 7], "train-{000..002}.tar": [*range(6)]}.get(path, [0, 1, 6, 7])
    assert source.names == tuple(f"{i:04d}.png" for i in expected)
    assert source.labels == tuple(str(i % 3) for i in expected)
    np.testing.assert_array_equal(source.read(range(len(source))), photo_patches[expected])
    np.testing.assert_array_equal(source.read([1, 0])[1], photo_patches[expected[0]])


def test_what_belongs_to_no_image_is_counted(shards: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hvae_codec.data.archive_index.REMEMBERED_FROM", 1)
    assert opened(shards).container.other_files == {}  # captions and classes are of their images
    for name in ("x-0.tar", "x-1.tar"):
        tar_of(
            shards / name, ("a.heic", b""), ("a.cls", b"1"), ("b.HEIC", b""), (".c.heic", b""), ("dataset.json", b"{}")
        )
    for _ in range(2):
        assert opened(shards).container.other_files == {".heic": 4, ".cls": 2}


def test_names_of_shards_say_what_is_held_out(shards: Path):
    source = opened(shards)
    assert source.split("train").names == tuple(f"{i:04d}.png" for i in range(6))
    assert source.split("val").names == ("0006.png", "0007.png")
    assert splits_sentence(TrainingAndHeldOut(source)) == "train 6 (train-*.tar), held out 2 (val-*.tar)"
    (shards / "val-000.tar").rename(shards / "x-test-000.tar")
    assert opened(shards).split("test").names == ("0006.png", "0007.png")
    (shards / "train-001.tar").rename(shards / "more.tar")
    assert splits_sentence(TrainingAndHeldOut(opened(shards))).endswith("2 (x-test-*.tar); neither: 2 (others)")
    alone = opened(shards / "x-test-{000..000}.tar")
    assert alone.split("val").names == alone.names
    with pytest.raises(DataError, match=r"all images in .* held out \(in x-test-\*\.tar\).*training images as well"):
        alone.split("train")
    with pytest.raises(DataError, match=r"no image in .*train-000\.tar .*choose another split"):
        opened(shards / "train-000.tar").split("test")


def test_a_skipped_image_does_not_shift_the_parts(shards: Path):
    with tarfile.open(shards / "train-000.tar", "a") as archive:
        archive.addfile(tarfile.TarInfo("00000.png"))
    source = opened(shards, skip_broken=True)
    assert source.skipped == {"00000.png": "broken"}
    assert source.split("val").names == ("0006.png", "0007.png")


def test_folders_in_the_names_count_more_than_the_name_of_the_tar(folder: Path):
    with tarfile.open(folder.with_name("my_test.tar"), "w") as archive:
        archive.add(folder, ".")
    assert opened(folder.with_name("my_test.tar")).splits.folders == {"train": ["train/"], "val": ["val/"], "test": []}


def test_a_folder_in_one_tar_does_not_let_another_be_trained_on(tmp_path: Path):
    tar_of(tmp_path / "x" / "train-0.tar", ("cats/1.png", b""), ("dev/2.png", b""))
    tar_of(tmp_path / "x" / "test-0.tar", ("cats/3.png", b""), ("dogs/4.png", b""))
    source = opened(tmp_path / "x")
    assert source.split("train").names == ("cats/1.png",)
    assert source.split("val").names == ("dev/2.png",)
    assert source.split("test").names == ("cats/3.png", "dogs/4.png")
    assert splits_sentence(TrainingAndHeldOut(source)) == (
        "train 1 (train-*.tar), held out 1 (dev/); neither: 2 (test-*.tar)"
    )


def test_labels_beside_images(tmp_path: Path):
    members = [
        ("a/1.png", b""),
        ("a/1.cls", b" 3\n"),
        ("a/2.png", b""),
        ("a/2.json", b'{"label": "cat", "caption": "a cat"}'),
        ("a/3.png", b""),
        ("a/3.json", b'{"caption": "no class"}'),
        ("a/4.cls", b"of no image"),
    ]
    assert opened(tar_of(tmp_path / "x.tar", *members)).labels == ("3", "cat", "a")
    stated = ("dataset.json", b'{"labels": [["a/1.png", "of the sample"], ["a/3.png", 7]]}')
    assert opened(tar_of(tmp_path / "x.tar", *members, stated)).labels == ("3", "cat", "7")
    with pytest.raises(DataError, match=r"x\.tar/a/1\.cls cannot be read as a label"):
        opened(tar_of(tmp_path / "x.tar", members[0], ("a/1.cls", b"\xff")))


def test_a_key_twice_names_both_shards(shards: Path, tmp_path: Path):
    tar_of(shards / "more.tar", ("0003.jpg", b"x"))
    with pytest.raises(DataError, match=r"more\.tar/0003\.jpg and .*train-001\.tar/0003\.png .*key, 0003;"):
        opened(shards)
    for second in ("0.seg.png", "0.png"):
        with pytest.raises(DataError, match=r"x\.tar"):
            opened(tar_of(tmp_path / "x.tar", ("0.png", b"x"), (second, b"y")))


def test_a_missing_shard_and_wrong_ranges(shards: Path):
    (shards / "train-001.tar").unlink()
    with pytest.raises(DataError, match=r"1 of the 3 files of .*are missing, such as .*train-001\.tar"):
        opened(shards / "train-{000..002}.tar")
    with pytest.raises(DataError, match=r"range \{002\.\.000\}.*smaller number first"):
        opened(shards / "train-{002..000}.tar")
    with pytest.raises(DataError, match=r"range \{0\.\.9+\}.*too long"):
        opened(shards / "train-{0..9999999999}.tar")


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.tar"])
def test_compressed_tars_are_refused_with_advice(folder: Path, name: str):
    with tarfile.open(folder.with_name(name), "w:gz") as archive:
        archive.add(folder, ".")
    with pytest.raises(DataError, match=rf"{name} is compressed.*decompress it"):
        opened(folder.with_name(name))


@pytest.mark.parametrize("kept", [700, 1024, 1500, 3000])
def test_truncated_tars_are_refused(tmp_path: Path, kept: int):
    path = tar_of(tmp_path / "x.tar", ("1.png", b"x"), ("2.png", b"y" * 1000))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"x\.tar cannot be read as a tar: it is truncated"):
        opened(path)


def test_negative_sizes_do_not_go_on_for_ever(tmp_path: Path):
    path = tmp_path / "x.tar"
    info = tarfile.TarInfo(".hidden")
    info.size = -512
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10_240))
    with pytest.raises(DataError, match=r"x\.tar .*truncated, damaged"):
        opened(path)


def test_joined_tars_are_refused(tmp_path: Path):
    path = tar_of(tmp_path / "x.tar", ("1.png", b"x"))
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(DataError, match=r"behind its end mark"):
        opened(path)


@pytest.mark.parametrize(
    ("name", "attributes", "message"),
    [
        ("../1.png", {}, r"'\.\./1\.png', which leads out of it"),
        ("/etc/1.png", {}, r"leads out of it"),
        ("1.png", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, r"x\.tar/1\.png is a link; unpack"),
        ("1.png", {"type": tarfile.LNKTYPE, "linkname": "0.png"}, r"x\.tar/1\.png is a link; unpack"),
        ("1.png", {"type": tarfile.FIFOTYPE}, r"x\.tar/1\.png is not stored as a plain file"),
        ("\udcff.png", {}, r"not UTF-8"),
        ("notes.txt", {}, r"there are no images in .*x\.tar"),
    ],
)
def test_members_that_cannot_be_read_or_stored(tmp_path: Path, name: str, attributes: dict, message: str):
    with pytest.raises(DataError, match=message):
        opened(tar_of(tmp_path / "x.tar", (name, b""), **attributes))


def test_a_tar_that_changes_while_it_is_read_is_an_error(shards: Path):
    source = opened(shards)
    os.utime(shards / "train-001.tar", ns=(0, 0))
    with pytest.raises(DataError, match=r"train-001\.tar was changed while it was read"):
        source.read([0, 3])


def test_a_large_tar_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tar_of(tmp_path / "x.tar", *((f"{i:04d}.png", b"x") for i in range(1000)))
    first = opened(path)
    monkeypatch.delattr(tarfile.TarFile, "next")
    again = opened(path)
    assert (again.names, again.labels, again.fingerprint) == (first.names, first.labels, first.fingerprint)


def test_images_beside_tars_are_what_a_folder_holds(folder: Path):
    tar_of(folder / "x.tar", ("0.png", b"x"))
    assert opened(folder).names == tuple(NAMES)


def test_files_that_are_too_large_are_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch):
    with tarfile.open(folder.with_name("a.tar"), "w") as archive:
        archive.add(folder, ".")
    monkeypatch.setattr("hvae_codec.data.archives.LARGEST_FILE", 10)
    with pytest.raises(DataError, match=r"train/cats/1\.png is of \d+ bytes; at most 10 are read"):
        opened(folder.with_name("a.tar")).read([0])


def test_a_range_of_too_many_files_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="stands for more than 1,000,000 files"):
        opened(tmp_path / "{0..9999}-{0..9999}.tar")
