from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hvae_codec.data import parquet_groups
from hvae_codec.data.sources import ImageSource, open_images
from hvae_codec.data.training_and_held_out import TrainingAndHeldOut
from hvae_codec.errors import DataError, UsageError
from hvae_codec.report.splits import splits_sentence

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

CLASSES = ["airplane", "cat"]
FEATURES = {"image": {"_type": "Image"}, "label": {"names": CLASSES, "_type": "ClassLabel"}}


def png(patch: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(patch.transpose(1, 2, 0)).save(buffer, "png")
    return buffer.getvalue()


def write(
    path: Path, patches: np.ndarray, *, features: dict | None = FEATURES, image: str = "image", **columns
) -> Path:
    """Write a file as Hugging Face's `datasets` does: structs of bytes and path, the features in the metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    structs = [{"bytes": png(patch), "path": None} for patch in patches]
    table = pa.table({image: structs, "label": [i % 2 for i in range(len(patches))]} | columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=3)
    return path


def opened(path: Path, **options: object) -> ImageSource:
    return open_images(path, size=16, channels=3, **options)


@pytest.mark.parametrize("kind", ["folder", "range"])
def test_files_of_hugging_face(tmp_path: Path, photo_patches, kind: str):
    for i in range(2):
        write(tmp_path / f"train-0000{i}-of-00002.parquet", photo_patches[7 * i : 7 * i + 7])
    write(tmp_path / "test-00000-of-00001.parquet", photo_patches[14:18])
    source = opened(tmp_path if kind == "folder" else tmp_path / "train-{00000..00001}-of-00002.parquet")
    train = source.split("train") if kind == "folder" else source
    assert train.names[:8:7] == ("train-00000-of-00002/00000000", "train-00001-of-00002/00000000")
    assert train.labels[:4] == ("airplane", "cat", "airplane", "cat")
    np.testing.assert_array_equal(np.concatenate([*train.batches(4)]), photo_patches[:14])
    np.testing.assert_array_equal(train.read([13, 0, 6]), photo_patches[[13, 0, 6]])
    assert list(source.names) == sorted(source.names)
    if kind == "folder":
        np.testing.assert_array_equal(source.split("test").read(range(4)), photo_patches[14:18])
        assert splits_sentence(TrainingAndHeldOut(source)).endswith(
            "14 (train-*-of-*.parquet), held out 4 (test-*-of-*.parquet)"
        )


def test_columns_without_metadata(tmp_path: Path, photo_patches):
    path = write(tmp_path / "x.parquet", photo_patches[:4], features=None)
    assert opened(path).labels == ("0", "1", "0", "1")
    raw = pa.table({"picture": [png(patch) for patch in photo_patches[:4]], "caption": ["a"] * 4})
    pq.write_table(raw, tmp_path / "y.parquet")
    source = opened(tmp_path / "y.parquet")
    assert set(source.labels) == {""}
    np.testing.assert_array_equal(source.read([2]), photo_patches[2:3])


@pytest.mark.parametrize("names", [2, {"0": "airplane"}, "ab", None])
def test_other_things_than_a_list_of_classes_give_no_names(tmp_path: Path, photo_patches, names: object):
    features = FEATURES | {"label": {"names": names, "_type": "ClassLabel"}}
    assert opened(write(tmp_path / "x.parquet", photo_patches[:3], features=features)).labels == ("0", "1", "0")


def test_files_that_are_not_trained_on_may_be_held_out(tmp_path: Path, photo_patches):
    """Of one set of files, it is told which rows are in both."""
    for i, name in enumerate(("train-0", "train-1", "test-0")):
        write(tmp_path / f"{name}.parquet", photo_patches[7 * i : 7 * i + 7])
    images = TrainingAndHeldOut(opened(tmp_path), opened(tmp_path / "test-0.parquet"))
    assert (len(images.training), len(images.held_out)) == (14, 7)
    with pytest.raises(DataError, match=r"7 of the 7 held-out images, such as .*/train-1/00000000, are training"):
        TrainingAndHeldOut(opened(tmp_path), opened(tmp_path / "train-1.parquet"))


def test_files_that_give_the_same_names_are_refused(tmp_path: Path, photo_patches):
    for i, name in enumerate(("a.parquet", "a.PARQUET", "a.b.parquet")):
        write(tmp_path / "data" / name, photo_patches[3 * i : 3 * i + 3])
    if len([*(tmp_path / "data").iterdir()]) < 3:
        pytest.skip("this file system takes upper and lower case for the same")
    with pytest.raises(DataError, match=r"data/a\.PARQUET and .*data/a\.parquet would have the same names; rename"):
        opened(tmp_path / "data")
    (tmp_path / "data/a.PARQUET").unlink()
    assert len({*opened(tmp_path / "data").names}) == 6


def test_columns_that_are_not_clear(tmp_path: Path, photo_patches):
    features = {"a": {"_type": "Image"}, "b": {"_type": "Image"}}
    more = {"b": [png(patch) for patch in photo_patches[:4]]}
    path = write(tmp_path / "x.parquet", photo_patches[:4], image="a", features=features, **more)
    with pytest.raises(DataError, match=r"x\.parquet has several columns .*\(a, b\); .*--column a"):
        opened(path)
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"no column of images, but text, label"):
        opened(path)


def test_a_column_is_chosen(tmp_path: Path, photo_patches):
    others = [png(patch) for patch in photo_patches[4:8]]
    path = write(tmp_path / "x.parquet", photo_patches[:4], features=None, img=others, caption=["a"] * 4)
    with pytest.raises(DataError, match=r"several columns .*\(image, img\); .*--column image"):
        opened(path)
    first, second = (opened(path, column=column) for column in ("image", "img"))
    np.testing.assert_array_equal(first.read(range(4)), photo_patches[:4])
    np.testing.assert_array_equal(second.read(range(4)), photo_patches[4:8])
    assert first.fingerprint != second.fingerprint
    assert second.preprocessing.to_dict() == {"column": "img"}
    with pytest.raises(DataError, match=r"x\.parquet has no column 'x', but image, label, img, caption; .*--column"):
        opened(path, column="x")
    with pytest.raises(DataError, match=r"'caption' of .*x\.parquet holds no images.* bytes are image, img"):
        opened(path, column="caption")


def test_a_column_that_is_the_only_one_changes_nothing(tmp_path: Path, photo_patches):
    path = write(tmp_path / "x.parquet", photo_patches[:4])
    assert opened(path, column="image").fingerprint == opened(path).fingerprint


def test_what_has_no_columns_takes_none(tmp_path: Path, photo_patches):
    (tmp_path / "x").mkdir()
    Image.fromarray(photo_patches[0].transpose(1, 2, 0)).save(tmp_path / "x/1.png")
    with pytest.raises(UsageError, match=r"--column is 'img', and .*x has no columns"):
        opened(tmp_path / "x", column="img")
    with pytest.raises(UsageError, match=r"--column is ''; give the name"):
        opened(tmp_path / "x", column="")


def test_damaged_files_and_images(tmp_path: Path, photo_patches):
    path = write(tmp_path / "x.parquet", photo_patches[:4])
    images = [{"bytes": None, "path": "1.png"}, {"bytes": b"x", "path": None}]
    pq.write_table(pa.table({"image": images}), tmp_path / "y.parquet")
    with pytest.raises(DataError, match=r"y\.parquet/y/00000000 is broken.*its path at best"):
        opened(tmp_path / "y.parquet").read([0])
    source = opened(path)
    assert source.source_bytes < path.stat().st_size
    os.utime(path, ns=(0, 0))
    with pytest.raises(DataError, match=r"x\.parquet was changed while it was read"):
        source.read([0])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"x\.parquet cannot be read as Parquet: it is truncated"):
        opened(path)


def test_row_groups_are_read_once_in_order(tmp_path: Path, photo_patches, monkeypatch: pytest.MonkeyPatch):
    path, read = write(tmp_path / "x.parquet", photo_patches[:9]), []
    original = parquet_groups.ParquetGroups.read
    monkeypatch.setattr(
        parquet_groups.ParquetGroups, "read", lambda self, group: read.append(group) or original(self, group)
    )
    for _ in opened(path).batches(2):
        pass
    assert sorted(read) == [0, 1, 2]
    read.clear()
    source = opened(path)
    source.container.group_cache_bytes = 0
    source.read([8, 0, 4, 5, 8])
    assert read == [2, 0, 1, 2]
    read.clear()
    source = opened(path)
    source.container.group_cache_bytes = 0
    source.read([2, 3, 2, 3])
    assert read == [0, 1]


def test_a_fingerprint_sees_the_files(tmp_path: Path, photo_patches):
    first = opened(write(tmp_path / "x.parquet", photo_patches[:4])).fingerprint
    assert opened(write(tmp_path / "x.parquet", photo_patches[:4])).fingerprint == first
    assert opened(write(tmp_path / "x.parquet", photo_patches[4:8])).fingerprint != first


def test_files_without_images_and_a_missing_package(tmp_path: Path, photo_patches, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path / "x.parquet", photo_patches[:1])
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(DataError, match=r"there are no images in .*x\.parquet"):
        opened(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pip install 'hvae-codec\[parquet\]'"):
        opened(path)
