"""Format version 4: each image's split, the bytes of its file and their checksum, written, read, verified and lost."""

import dataclasses
import os
import shutil

import numpy as np
import pytest
import xarray
import zarr
from other_pythons import GOLDEN

from hvae_codec import open_store, verify
from hvae_codec.errors import StoreError
from hvae_codec.report.about import describe
from hvae_codec.store.folder_writer import FolderStoreWriter
from hvae_codec.store.reader import Store, open_damaged
from hvae_codec.store.spec import spec_fingerprint
from hvae_codec.verification.inspection import Inspection
from hvae_codec.verification.repair_metadata import repair_arrays, repair_group
from stores import GRANULARITIES, checksums_of, make_spec, make_store, photo_latents, records_of, tree, write_all

SPEC = make_spec(**records_of(20))
TABLES = ["split", "file_bytes"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("made") / "out.zarr", SPEC).path


@pytest.fixture
def path(made, tmp_path):
    return shutil.copytree(made, tmp_path / "out.zarr")


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_they_are_read_as_they_were_written(tmp_path, granularity):
    spec = make_spec(granularity=granularity, **records_of(20))
    store = make_store(tmp_path / "out.zarr", spec)
    assert store.format_version == 4
    assert store.splits == spec.splits
    np.testing.assert_array_equal(store.file_bytes, spec.file_bytes)
    np.testing.assert_array_equal(store.checksums, checksums_of(spec.names))
    assert store.checksums.dtype == np.uint32
    assert verify(store.path).ok
    assert spec_fingerprint(store.spec()) == store.metadata.fingerprint


def test_they_stand_in_the_frame_and_are_no_figures(path):
    store = open_store(path)
    assert store.frame.columns.tolist() == ["name", "label", "split", "file_bytes", "checksum"]
    assert store.frame.split.tolist() == SPEC.splits
    assert store.per_image_names == store.own_figures == ()


def test_others_read_them(path):
    group = zarr.open_group(path, mode="r")
    np.testing.assert_array_equal(group["checksum"][:], checksums_of(SPEC.names))
    assert group["split"][:].tolist() == SPEC.splits
    flat = xarray.open_zarr(path, consolidated=False)
    assert (flat.file_bytes.dims, flat.checksum.dtype) == (("image",), np.int64)
    tree = open_store(path).to_xarray()
    assert tree["/z16"].coords["split"].to_numpy().tolist() == SPEC.splits
    np.testing.assert_array_equal(tree.checksum, checksums_of(SPEC.names))


def test_info_counts_images_by_split():
    facts = describe(GOLDEN / "records-position.zarr")
    assert facts.pairs["splits"] == "train 5, val 2, test 2, none 1"
    assert facts.data["splits"] == {"train": 5, "val": 2, "test": 2, "none": 1}
    assert "splits" not in describe(GOLDEN / "variate-int.zarr").pairs


def test_stores_of_older_versions_have_none(tmp_path):
    store = make_store(tmp_path / "out.zarr")
    assert store.format_version == 1
    assert store.splits is store.file_bytes is store.checksums is None
    assert not {"split", "file_bytes", "checksum"} & {*store.path.array_folders()}
    assert store.frame.columns.tolist() == ["name", "label"]


def test_in_a_store_of_an_older_version_an_array_of_that_name_is_its_users(tmp_path):
    path = make_store(tmp_path / "out.zarr").path
    array = zarr.open_group(path, mode="r+").create_array("split", data=-np.arange(20.0), dimension_names=["image"])
    store = open_store(path)
    assert store.per_image_names == ("split",)
    assert store.frame.split.tolist() == array[:].tolist()
    assert store.splits is None
    assert verify(path).ok


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"splits": ["train"] * 19}, "20 names, 19 splits"),
        ({"splits": ["training"] * 20}, "'training'"),
        ({"splits": None}, "20 names, 0 splits"),
        ({"file_bytes": None}, "bytes of 0 files"),
        ({"file_bytes": np.full(20, -1)}, "-1 at least"),
        ({"file_bytes": np.ones(20)}, "float64"),
    ],
)
def test_a_specification_that_cannot_be_is_refused(changes, message):
    with pytest.raises(StoreError, match=message):
        dataclasses.replace(SPEC, **changes)


def test_they_are_a_part_of_the_fingerprint():
    others = [{"splits": ["val"] * 20}, {"file_bytes": SPEC.file_bytes + 1}, {"splits": None, "file_bytes": None}]
    found = {spec_fingerprint(dataclasses.replace(SPEC, **change)) for change in others}
    assert len({*found, spec_fingerprint(SPEC)}) == 4


@pytest.mark.parametrize("checksums", [None, np.zeros(7, np.uint32), np.full(8, -1), np.full(8, 2**32), np.zeros(8)])
def test_a_row_group_without_its_checksums_is_refused(tmp_path, checksums):
    writer, latents = FolderStoreWriter.create_or_resume(tmp_path / "out.zarr", SPEC), photo_latents(SPEC)
    first = {resolution: numbers[:8] for resolution, numbers in latents.items()}
    with pytest.raises(StoreError, match="checksum"):
        writer.write(0, first, {} if checksums is None else {"checksum": checksums})
    assert writer.pending() == [0, 1, 2]


def test_a_resumed_store_is_the_same_and_leaves_no_checksums_of_others(path, tmp_path):
    target = tmp_path / "again.zarr"
    writer = write_all(target, SPEC, photo_latents(SPEC), only=1)
    left = writer.unfinished / "checksum/c/1"  # of a row group that was not committed
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_bytes(b"what a killed worker left")
    write_all(target, SPEC, photo_latents(SPEC)).publish()
    assert tree(target) == tree(path)


# --- damage


@pytest.mark.parametrize(
    ("file", "images"),
    [("checksum/c/1", range(8, 16)), ("split/c/0", range(20)), ("file_bytes/c/0", range(20))],
)
@pytest.mark.parametrize("what", ["missing", "flipped", "never written"])
def test_what_is_lost_is_found_and_never_read(path, file, images, what):
    name = file.partition("/")[0]
    if what == "missing":
        (path / file).unlink()
    elif what == "flipped":
        content = bytearray((path / file).read_bytes())
        content[5] ^= 1
        (path / file).write_bytes(content)
    else:
        array = zarr.open_array(path / name, mode="r+").with_config({"write_empty_chunks": True})
        array[images.start : images.stop] = array.fill_value
    [damage] = verify(path).damages
    assert (damage.file, damage.images, damage.row_group) == (file, images, 1 if name == "checksum" else None)
    with pytest.raises(StoreError, match=f"array {name} "):
        open_store(path).frame  # noqa: B018 - raises
    assert len(open_store(path).latents(slice(None))["z1"]) == 20


def test_a_number_that_is_no_crc_32_is_found(path):
    zarr.open_array(path / "checksum", mode="r+")[3] = 2**32
    assert [damage.file for damage in verify(path).damages] == ["checksum/c/0"]


@pytest.mark.parametrize(("name", "value"), [("split", "val"), ("file_bytes", 7)])
def test_a_table_of_another_store_is_found(path, name, value):
    zarr.open_array(path / name, mode="r+")[0] = value
    [damage] = verify(path).damages
    assert (damage.file, "fingerprint" in damage.problem) == ("zarr.json", True)


@pytest.mark.parametrize("name", ["split", "file_bytes", "checksum"])
def test_metadata_of_the_arrays_are_made_anew(path, name):
    before = tree(path)
    (path / name / "zarr.json").unlink()
    assert f"{name}/zarr.json" in {damage.file for damage in verify(path).damages}
    assert repair_arrays(Inspection(open_damaged(path))) == [f"{name}/zarr.json"]
    assert tree(path) == before


def test_lost_metadata_of_the_group_are_restored_from_their_copy(path):
    before = tree(path)
    (path / "zarr.json").unlink()
    assert repair_group(Inspection(open_damaged(path))) == ["zarr.json"]
    assert tree(path) == before


def test_an_array_that_is_missing_as_a_whole_is_found(path):
    for file in sorted((path / "checksum").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    os.rmdir(path / "checksum")
    assert [damage.file for damage in verify(path).damages] == ["checksum/zarr.json"]


def test_a_package_that_knows_three_versions_refuses_it(path, monkeypatch):
    monkeypatch.setattr("hvae_codec.store.group_file.FORMAT_VERSION", 3)
    with pytest.raises(StoreError, match="format version 4, this package reads up to 3"):
        Store.open(path)
