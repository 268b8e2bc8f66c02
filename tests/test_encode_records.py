"""Each image's split, the bytes of its file and their checksum: encoded, appended to, resumed, repaired."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from other_pythons import GOLDEN

from hvae_codec import LatentMask, encode_images, kl_stats, open_images, open_store, repair, verify
from hvae_codec.encode import pipeline
from hvae_codec.encode.append import append
from hvae_codec.encode.embedded_model import load_embedded
from hvae_codec.encode.missing import MissingRowGroups
from hvae_codec.encode.pipeline import EncodeOptions, encode_worker
from hvae_codec.encode.repair import RepairOptions
from hvae_codec.encode.unchanged_images import check_unchanged, committed_rows
from hvae_codec.errors import DataError
from hvae_codec.store.quantiser import IntCodec
from hvae_codec.store.row_group_writer import RowGroupWriter
from hvae_codec.store.workers import Worker
from hvae_codec.store.writer import StoreWriter
from photos import save_png
from stores import tree

pytestmark = pytest.mark.slow

FOLDERS = [*["train"] * 13, *["val"] * 4, *["test"] * 2, "others"]
OPTIONS = EncodeOptions(batch_size=4, row_group_size=8)


@pytest.fixture(scope="module")
def made(cut_patches, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos") / "data"
    for i, pixels in enumerate(cut_patches(len(FOLDERS))):
        save_png(folder / FOLDERS[i] / "cats" / f"{i:03d}.png", pixels)
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return shutil.copytree(made, tmp_path / "data")


@pytest.fixture(scope="module")
def stats(tiny_model, made):
    return kl_stats(tiny_model, opened(made))


@pytest.fixture(scope="module")
def encode(tiny_model, stats):
    """`encode(images, path)`: a store of format version 5, with records."""

    def call(images, path, worker=None, options=OPTIONS):
        mask = LatentMask.from_keep(stats, 0.5)
        return encode_worker(tiny_model, images, path, worker or Worker(), mask=mask, stats=stats, options=options)

    return call


@pytest.fixture(scope="module")
def whole(encode, made, tmp_path_factory) -> Path:
    return encode(opened(made), tmp_path_factory.mktemp("whole") / "out.zarr").path


@pytest.fixture
def store(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "out.zarr")


def opened(path, **options):
    return open_images(path, size=16, channels=3, **options)


def edit(folder: Path, name: str) -> None:
    """Change one byte that no pixel depends on."""
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1  # of the end mark's checksum, which decoders pass over
    (folder / name).write_bytes(content)


# --- encode


def test_a_store_keeps_what_its_images_are_for_and_their_bytes(whole, made):
    store = open_store(whole)
    files = [made / name for name in store.names]
    assert store.format_version == 5
    assert dict(zip(store.names, store.splits, strict=True)) == {
        name: name.partition("/")[0] if "others" not in name else "" for name in store.names
    }
    assert store.file_bytes.tolist() == [file.stat().st_size for file in files]
    assert store.checksums.tolist() == [zlib.crc32(file.read_bytes()) for file in files]
    assert verify(whole).ok


def test_of_a_selection_they_are_what_they_are_of_all(encode, made, tmp_path):
    """The tenth by hash of what is in `train/` is no validation set."""
    source = opened(made)
    for part in ("train", "test"):
        assert set(encode(source.split(part), tmp_path / f"{part}.zarr").splits) == {part}
    some = encode(source.subset(range(3, 15)), tmp_path / "some.zarr")
    assert some.splits == [source.split_names[i] for i in range(3, 15)]


def test_images_of_test_folders_are_test_images_also_if_they_validate(made, folder):
    shutil.rmtree(folder / "val")
    source = opened(folder)
    assert {source.names[i].partition("/")[0] for i in source.splits.val} == {"test"}
    assert [split for split in source.split_names if split not in ("train", "")] == ["test"] * 2


def test_without_split_folders_the_tenth_is_for_validation(encode, cut_patches, tmp_path):
    store = encode(cut_patches(20), tmp_path / "out.zarr")
    assert [i for i, split in enumerate(store.splits) if split == "val"] == [
        int(name) for name in opened_array(cut_patches(20), tmp_path).split("val").names
    ]
    assert store.splits.count("train") == 20 - store.splits.count("val") < 20
    assert store.file_bytes.tolist() == [768] * 20


def opened_array(patches, tmp_path):
    np.save(tmp_path / "data.npy", patches.transpose(0, 2, 3, 1))
    return opened(tmp_path / "data.npy")


def test_a_single_image_is_for_training(encode, cut_patches, tmp_path):
    assert encode(cut_patches(1), tmp_path / "out.zarr").splits == ["train"]


def killed_after_a_row_group(monkeypatch, encode, *arguments) -> StoreWriter:
    """Encode, and stop before the second row group is written; the unfinished store."""
    stores, written, write = [], [], RowGroupWriter.write

    def missing(store, encoder):
        stores.append(store)
        return MissingRowGroups(store, encoder)

    def killed(writer, *row_group):
        written.append(writer)
        if len(written) > 1:
            raise KeyboardInterrupt
        return write(writer, *row_group)

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "MissingRowGroups", missing)
        patched.setattr(RowGroupWriter, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            encode(*arguments)
    return stores[0]


def test_workers_and_resumed_encodes_write_the_same(encode, whole, made, tmp_path, monkeypatch):
    path = tmp_path / "out.zarr"
    assert encode(opened(made), path, Worker(1, 2)) is None
    killed_after_a_row_group(monkeypatch, encode, opened(made), path, Worker(0, 2))
    encode(opened(made), path, Worker(0, 2))
    assert tree(path) == tree(whole)


def test_a_zip_has_the_same(encode, whole, made, tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(made.rglob("*.png")):
            archive.write(file, file.relative_to(made).as_posix())
    store, expected = encode(opened(tmp_path / "data.zip"), tmp_path / "out.zarr"), open_store(whole)
    assert store.splits == expected.splits
    assert store.file_bytes.tolist() == expected.file_bytes.tolist()
    assert store.checksums.tolist() == expected.checksums.tolist()


# --- append


def test_an_appended_store_has_those_of_both(encode, tiny_model, whole, made, cut_patches, tmp_path):
    for i, pixels in enumerate(cut_patches(30)[20:]):
        save_png(tmp_path / "more" / "dev" / f"{i}.png", pixels)
    grown = append(tiny_model, opened(tmp_path / "more"), whole, out=tmp_path / "out.zarr", batch_size=4)
    old, files = open_store(whole), sorted((tmp_path / "more" / "dev").iterdir())
    assert grown.format_version == 5
    assert grown.splits == [*old.splits, *["val"] * 10]
    assert grown.file_bytes.tolist() == [*old.file_bytes, *(file.stat().st_size for file in files)]
    assert grown.checksums.tolist() == [*old.checksums, *(zlib.crc32(file.read_bytes()) for file in files)]
    assert verify(grown.path).ok


def test_an_array_in_memory_is_appended_with_them(encode, tiny_model, cut_patches, tmp_path):
    patches = cut_patches(20)
    encode(patches[:12], tmp_path / "out.zarr")
    grown = append(tiny_model, patches[12:], tmp_path / "out.zarr", batch_size=4)
    assert grown.checksums.tolist() == [zlib.crc32(p.transpose(1, 2, 0).tobytes()) for p in patches]
    assert len(grown.splits) == len(grown.file_bytes) == 20
    assert verify(grown.path).ok


@pytest.mark.parametrize(
    "name",
    [
        "variate-int",
        "position-int",
        "variate-decoder",
        "records-appended",
        "plain-variate",
        "archive-position",
        "archive-variate",
    ],
)
def test_a_store_keeps_its_version_when_it_is_appended_to(name, tmp_path, cut_patches):
    path = shutil.copytree(GOLDEN / f"{name}.zarr", tmp_path / "out.zarr")
    model = load_embedded(open_store(GOLDEN / "variate-int.zarr"))
    grown, before = append(model, cut_patches(7, 8), path, batch_size=4), open_store(GOLDEN / f"{name}.zarr")
    assert (len(grown), grown.format_version) == (17, before.format_version)
    assert (grown.metadata.packing, grown.dtypes) == (before.metadata.packing, before.dtypes)
    assert (grown.splits is None) == (before.splits is None)
    assert {*grown.path.array_folders()} == {*before.path.array_folders()}
    assert verify(path).ok


# --- resume


def test_a_committed_image_that_was_edited_is_named(encode, folder, tmp_path, monkeypatch):
    source = opened(folder)
    writer = killed_after_a_row_group(monkeypatch, encode, source, tmp_path / "out.zarr")
    assert committed_rows(writer).tolist() == list(range(8))
    check_unchanged(writer, opened(folder), range(20))
    edit(folder, source.names[9])
    check_unchanged(writer, opened(folder), range(20))  # its row group is encoded yet
    edit(folder, source.names[5])
    check_unchanged(writer, opened(folder), [0, 1, 2, 9])
    check_unchanged(writer, opened(folder).subset(range(6, 20)), range(20), start=6)
    with pytest.raises(DataError, match=rf"{source.names[5]} was changed .* remove .*out.zarr.partial"):
        check_unchanged(writer, opened(folder), range(20))


# --- repair


def mended(store, images, model, stats):
    return repair(store, images, model, stats=stats, options=RepairOptions(batch_size=4))


@pytest.mark.parametrize(
    "files",
    [
        ["checksum/c/1"],
        ["split/c/0"],
        ["file_bytes/c/0"],
        ["split/zarr.json", "file_bytes/zarr.json", "checksum/zarr.json"],
        ["split/c/0", "file_bytes/c/0", "name/c/0", "checksum/c/0", "checksum/c/2", "z16/c/1/0/0/0"],
    ],
)
def test_they_are_made_anew(store, whole, folder, tiny_model, stats, files):
    for file in files:
        (store / file).unlink()
    report = mended(store, opened(folder), tiny_model, stats)
    assert (report.before.ok, report.after.ok, report.notes) == (False, True, [])
    assert tree(store) == tree(whole)


def test_an_edited_image_of_the_same_size_and_name_is_not_put_in(store, folder, tiny_model, stats):
    names = open_store(store).names
    edit(folder, names[13])
    for file in ("z16/c/1/0/0/0", "z16/c/0/0/0/0"):
        (store / file).unlink()
    before = tree(store)
    report = mended(store, opened(folder), tiny_model, stats)
    assert [damage.file for damage in report.after.damages] == ["z16/c/1/0/0/0"]
    [note] = report.notes
    assert f"image 13 ({names[13]})" in note
    assert "other bytes" in note
    assert {key for key, content in tree(store).items() if before.get(key) != content} == {"z16/c/0/0/0/0"}


@pytest.mark.parametrize("also", [[], ["checksum/c/1"]])
def test_checksums_prove_images_found_by_name_among_others(store, whole, folder, tiny_model, stats, cut_patches, also):
    """All numbers of a row group and its digest are lost, so nothing else tells its images."""
    save_png(folder / "train" / "another.png", cut_patches(21)[20])
    for file in [*store.glob("z*/c/1/**/*"), *(store / file for file in ("committed/c/1", *also))]:
        if file.is_file():
            file.unlink()
    report = mended(store, opened(folder), tiny_model, stats)
    assert report.after.ok == (not also)
    assert ("cannot be proven" in "".join(report.notes)) == bool(also)
    assert (tree(store) == tree(whole)) == (not also)


def test_latents_that_are_all_alike_prove_no_checksum(tiny_model, stats, folder, tmp_path, cut_patches):
    """With so large a step all codes are 0, so the digest is that of any images."""
    mask, path = LatentMask.from_keep(stats, 0.5), tmp_path / "flat.zarr"
    options = EncodeOptions(batch_size=4, row_group_size=8, evaluate=True, verify=True)
    encode_images(tiny_model, opened(folder), path, mask=mask, stats=stats, options=options, codec=IntCodec(step=1e5))
    before = tree(path)
    for name in ("checksum", "rate", "sketch"):
        (path / name / "c" / "1").unlink()
    shutil.copytree(folder, tmp_path / "others")
    names = open_store(path).names
    for name, pixels in zip(names, cut_patches(60)[40:], strict=True):
        save_png(tmp_path / "others" / name, pixels)
    report = mended(path, opened(tmp_path / "others"), tiny_model, stats)
    assert report.rewritten == ["sketch/c/1"]
    assert [damage.file for damage in report.after.damages] == ["checksum/c/1", "rate/c/1"]
    assert "rate, checksum of images 8 to 15 cannot be made anew" in report.notes[0]
    report = mended(path, opened(folder), tiny_model, stats)
    assert (report.after.ok, tree(path) == before) == (True, True)


def test_other_images_do_not_give_a_table_anew(store, folder, tiny_model, stats):
    (store / "file_bytes/c/0").unlink()
    (folder / open_store(store).names[3]).write_bytes((folder / open_store(store).names[4]).read_bytes() + b"more")
    report = mended(store, opened(folder), tiny_model, stats)
    assert [damage.file for damage in report.after.damages] == ["file_bytes/c/0"]
    assert "file_bytes cannot be made anew" in report.notes[0]


def test_without_images_the_tables_are_left(store, whole):
    for file in ("split/c/0", "checksum/zarr.json"):
        (store / file).unlink()
    report = repair(store)
    assert report.rewritten == ["checksum/zarr.json"]
    assert "takes the images" in report.notes[0]


def test_a_store_of_an_older_version_is_repaired_as_ever(tmp_path, cut_patches):
    path, before = (
        shutil.copytree(GOLDEN / "variate-int.zarr", tmp_path / "out.zarr"),
        tree(GOLDEN / "variate-int.zarr"),
    )
    model = load_embedded(open_store(path))
    for name, pixels in zip(open_store(path).names, cut_patches(10, 8), strict=True):
        save_png(tmp_path / "data" / name, pixels)
    (path / "z1/c/0/0/0/0").unlink()
    images = open_images(tmp_path / "data", size=8, channels=3)
    report = repair(path, images, model, options=RepairOptions(batch_size=4))
    assert (report.rewritten, report.after.ok) == (["z1/c/0/0/0/0"], True)
    assert tree(path).keys() == before.keys()
