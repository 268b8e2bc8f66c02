"""Portions: some images of a source, pickled, are what they are in the whole, in another process and working folder."""

from __future__ import annotations

import functools
import gc
import gzip
import os
import pickle
import shutil
import sys
import tarfile
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from PIL import Image

from hvae_codec.data import npz
from hvae_codec.data.folders import Folder
from hvae_codec.data.seen import Seen
from hvae_codec.data.sources import ImageSource, as_source, open_images
from hvae_codec.errors import DataError
from hvae_codec.prune.image_keys import image_keys
from photos import cut, save_png

IMAGES = 24
ROWS = [17, 3, 4, 5, 22, 0]
PATCHES = cut(IMAGES)
PLANES = PATCHES.transpose(0, 2, 3, 1)
LABELS = [f"{i % 3}" for i in range(IMAGES)]


def save_folder(path: Path) -> Path:
    """Files of which one is of another size, one has alpha, and one is grey."""
    for i, patch in enumerate(PATCHES):
        save_png(path / ("val" if i % 4 == 3 else "train") / "cd"[i % 2] / f"{i:02d}.png", patch)
    files = sorted(path.rglob("*.png"))
    for file, change in zip(files, ("RGBA", "L", (20, 24)), strict=False):
        image = Image.open(file)
        (image.convert(change) if isinstance(change, str) else image.resize(change)).save(file)
    return path


def save_zip(path: Path) -> Path:
    shutil.make_archive(str(path / "images"), "zip", save_folder(path / "images"))
    return path / "images.zip"


def save_tars(path: Path) -> Path:
    files = sorted(save_folder(path / "images").rglob("*.png"))
    (path / "tars").mkdir()
    for k in range(3):
        with tarfile.open(path / "tars" / f"train-{k}.tar", "w") as tar:
            for file in files[k::3]:
                tar.add(file, file.name)
    return path / "tars"


def save_parquet(path: Path) -> Path:
    files = sorted(save_folder(path / "images").rglob("*.png"))
    (path / "parquet").mkdir()
    for k, part in enumerate((files[:11], files[11:])):
        rows = [{"bytes": file.read_bytes(), "path": file.name} for file in part]
        table = pa.table({"image": rows, "label": [file.parent.name for file in part]})
        pq.write_table(table, path / "parquet" / f"train-{k}.parquet", row_group_size=4)
    return path / "parquet"


def save_npy(path: Path) -> Path:
    np.save(path / "images.npy", PLANES)
    return path / "images.npy"


def save_fortran(path: Path) -> Path:
    np.save(path / "images.npy", np.asfortranarray(PLANES))
    return path / "images.npy"


def save_npz(path: Path) -> Path:
    np.savez(path / "images.npz", images=PLANES, labels=np.array(LABELS))
    return path / "images.npz"


def save_compressed(path: Path) -> Path:
    arrays = {"x_train": PLANES[:9], "y_train": LABELS[:9], "x_val": PLANES[9:20], "x_test": PLANES[20:]}
    np.savez_compressed(path / "images.npz", **arrays, y_val=LABELS[9:20], y_test=LABELS[20:])
    return path / "images.npz"


def save_rows(path: Path) -> Path:
    """Batches as ImageNet 32 has them: rows, mapped."""
    (path / "batches").mkdir()
    for number, part in ((1, slice(0, 10)), (2, slice(10, None))):
        rows = PATCHES[part].reshape(-1, 768)
        np.savez(path / "batches" / f"train_data_batch_{number}.npz", data=rows, labels=np.ones(len(rows), np.int64))
    return path / "batches"


def save_zarr(path: Path) -> Path:
    zarr.create_array(str(path / "images.zarr"), data=PLANES, chunks=(5, 16, 16, 3))
    return path / "images.zarr"


def save_cifar(path: Path) -> Path:
    large = np.repeat(np.repeat(PATCHES, 2, axis=2), 2, axis=3).reshape(IMAGES, -1)
    (path / "cifar").mkdir()
    for name, part in (
        ("data_batch_1", slice(0, 10)),
        ("data_batch_2", slice(10, 18)),
        ("test_batch", slice(18, None)),
    ):
        batch = {"data": large[part], "labels": [int(label) for label in LABELS[part]]}
        (path / "cifar" / name).write_bytes(pickle.dumps(batch))
    return path / "cifar"


def save_idx(path: Path, pack: Callable[[bytes], bytes] = bytes, ending: str = "") -> Path:
    (path / "mnist").mkdir()
    for name, part in (("train", slice(0, 15)), ("t10k", slice(15, None))):
        grey = PLANES[part, :, :, 0]
        content = bytes([0, 0, 8, 3]) + np.array(grey.shape, ">u4").tobytes() + grey.tobytes()
        (path / "mnist" / f"{name}-images-idx3-ubyte{ending}").write_bytes(pack(content))
    return path / "mnist"


MAKERS: dict[str, Callable[[Path], Path]] = {
    "folder": save_folder,
    "zip": save_zip,
    "tars": save_tars,
    "parquet": save_parquet,
    "npy": save_npy,
    "npy of Fortran": save_fortran,
    "npz": save_npz,
    "npz with splits": save_compressed,
    "npz in rows": save_rows,
    "zarr": save_zarr,
    "cifar": save_cifar,
    "idx": save_idx,
    "idx.gz": functools.partial(save_idx, pack=gzip.compress, ending=".gz"),
}
IN_FILES = ("folder", "zip", "tars", "parquet", "npy", "npz in rows", "zarr", "idx")


class Photographs:
    """A Python data set of which one image is broken, and one of another size."""

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> tuple[Image.Image, str]:
        if index == 7:
            raise OSError("the disk is gone")
        image = Image.fromarray(PLANES[index])
        return image.resize((20, 24)) if index == 3 else image, LABELS[index]


@pytest.fixture(autouse=True)
def _map_small_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "MAPPED_FROM", 1)


def opened(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ImageSource:
    """Open what a kind's maker makes, by a relative path; then go to another working folder."""
    (folder / "here").mkdir(parents=True)
    (folder / "there").mkdir()
    path = MAKERS[kind](folder / "here")
    monkeypatch.chdir(folder)
    source = open_images(path.relative_to(folder), size=16, channels=1 if kind.startswith("idx") else 3)
    monkeypatch.chdir(folder / "there")
    return source


def assert_is_portion(portion: ImageSource, whole: ImageSource, rows: list[int]) -> None:
    chosen = whole.subset(rows)
    assert portion.names == chosen.names
    assert portion.labels == chosen.labels
    assert portion.file_bytes.tolist() == chosen.file_bytes.tolist()
    assert portion.numbers.tolist() == chosen.positions.tolist()
    assert image_keys(portion, slice(1, 4), 5) == [(5, row) for row in rows[1:4]]
    np.testing.assert_array_equal(portion.read(range(len(rows))), chosen.read(range(len(rows))))
    np.testing.assert_array_equal(np.concatenate([*portion.batches(4)]), chosen.read(range(len(rows))))
    assert portion.checksums(range(len(rows))).tolist() == chosen.checksums(range(len(rows))).tolist()
    assert portion.fingerprint == chosen.fingerprint


@pytest.mark.parametrize("kind", MAKERS)
def test_a_portion_is_what_it_is_in_the_whole(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = opened(kind, tmp_path / "data", monkeypatch)
    portion = pickle.loads(pickle.dumps(source.portion(ROWS)))
    assert_is_portion(portion, opened(kind, tmp_path / "again", monkeypatch), ROWS)
    smaller = pickle.loads(pickle.dumps(portion.portion([4, 0])))
    assert smaller.numbers.tolist() == [22, 17]
    np.testing.assert_array_equal(smaller.read([0, 1]), source.read([22, 17]))
    assert smaller.fingerprint == source.subset([22, 17]).fingerprint


def test_of_a_data_set_the_pixels_travel(tmp_path: Path):
    source, whole = (open_images(Photographs(), size=16, channels=3) for _ in range(2))
    assert_is_portion(pickle.loads(pickle.dumps(source.portion(ROWS))), whole, ROWS)
    with_broken = pickle.loads(pickle.dumps(source.portion([6, 7, 8])))
    np.testing.assert_array_equal(with_broken.read([2, 0]), source.read([8, 6]))
    for read in (lambda: with_broken.read([0, 1]), lambda: with_broken.checksums([1])):
        with pytest.raises(DataError, match=r"00000007 is broken.*the disk is gone"):
            read()
    np.testing.assert_array_equal(with_broken.portion([2]).read([0]), source.read([8]))


def test_of_an_array_in_memory_the_pixels_travel():
    assert_is_portion(pickle.loads(pickle.dumps(as_source(PATCHES).portion(ROWS))), as_source(PATCHES), ROWS)


@pytest.mark.parametrize("kind", ["folder", "tars", "parquet", "npy", "data set"])
def test_what_was_seen_in_portions_is_noted_in_the_whole(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if kind == "data set":
        whole, other = (open_images(Photographs(), size=16, channels=3) for _ in range(2))
    else:
        whole, other = (opened(kind, tmp_path / name, monkeypatch) for name in "ab")
    rows = [row for row in range(IMAGES) if row != 7]
    for some in (rows[:9], rows[9:]):
        portion = pickle.loads(pickle.dumps(whole.portion(some)))
        [*portion.batches(4)]
        seen: Seen = pickle.loads(pickle.dumps(portion.seen))
        whole.note(some, seen)
    other.read(rows)
    for counter in ("resized", "alpha_dropped", "frames_dropped", "recoloured", "depth_reduced"):
        assert getattr(whole, counter) == getattr(other, counter)
    assert kind == "npy" or whole.resized == 1
    monkeypatch.setattr(type(whole.container), "checksum", lambda *_: pytest.fail("it is read again"))
    assert whole.checksums(rows).tolist() == other.checksums(rows).tolist()


def test_noting_a_portion_that_was_not_read_forgets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = opened("folder", tmp_path, monkeypatch)
    unread = source.portion(range(IMAGES)).seen
    source.read(range(IMAGES))
    checksums = source.checksums(range(IMAGES)).tolist()
    source.note(range(IMAGES), unread)
    assert (source.resized, source.recoloured, source.alpha_dropped) == (1, 1, 1)
    assert source.checksums(range(IMAGES)).tolist() == checksums


def test_grey_images_are_converted_if_the_whole_has_colour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As in the whole, which is looked at once; a portion of grey images alone would be refused."""
    source = opened("folder", tmp_path, monkeypatch)
    looked_at = []
    original = Folder.channels_at
    monkeypatch.setattr(Folder, "channels_at", lambda self, i: looked_at.append(i) or original(self, i))
    for _ in range(3):
        portion = pickle.loads(pickle.dumps(source.portion([1])))
        np.testing.assert_array_equal(portion.read([0]), source.read([1]))
    assert (portion.recoloured, looked_at) == (1, [0])


def test_a_portion_of_grey_images_alone_is_refused_as_the_whole_is(tmp_path: Path):
    for i, patch in enumerate(PATCHES[:5]):
        Image.fromarray(patch[0]).save(tmp_path / f"{i}.png")
    source = open_images(tmp_path, size=16, channels=3)
    portion = pickle.loads(pickle.dumps(source.portion([3])))
    for read in (lambda: source.read([3]), lambda: portion.read([0])):
        with pytest.raises(DataError, match=r"3.png is grey .* --colour rgb"):
            read()


def test_preprocessing_and_what_training_leaves_out_travel(tmp_path: Path):
    save_folder(tmp_path)
    how = {"crop": "0,0,8,8", "resize": "area", "background": "white"}
    source = open_images(tmp_path, size=8, channels=3, **how).split("val")
    portion = pickle.loads(pickle.dumps(source.portion([4, 1])))
    assert (portion.preprocessing, portion.held_out) == (source.preprocessing, True)
    np.testing.assert_array_equal(portion.read([0, 1]), source.read([4, 1]))


def test_splits_are_the_wholes_to_tell(tmp_path: Path):
    portion = open_images(save_folder(tmp_path), size=16, channels=3).portion([0, 1])
    for ask in (lambda: portion.split("train"), lambda: portion.split_names):
        with pytest.raises(ValueError, match="ask the source that it was taken from"):
            ask()


def test_of_names_and_classes_a_portion_has_its_own_alone(tmp_path: Path):
    for i in range(600):
        (tmp_path / f"class {i:03d}").mkdir()
        Image.fromarray(PLANES[0]).save(tmp_path / f"class {i:03d}" / "1.png")
    message = pickle.dumps(open_images(tmp_path, size=16, channels=3).portion([7]))
    assert (b"class 007" in message, b"class 008" in message) == (True, False)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_portion_that_nobody_needs_is_gone_at_once(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Open files and row groups go with it, not when the garbage collector comes by."""
    message = pickle.dumps(opened(kind, tmp_path, monkeypatch).portion(ROWS))
    gc.collect()
    gc.disable()
    try:
        before = open_files()
        portion = pickle.loads(message)
        [*portion.batches(2)]
        gone = [weakref.ref(held) for held in (portion.container, *vars(portion.container).values()) if referable(held)]
        del portion
        assert [
            found for ref in gone if (found := ref()) is not None and found.__class__.__module__[:4] == "hvae"
        ] == []
        assert open_files() == before
    finally:
        gc.enable()


def referable(held: object) -> bool:
    return hasattr(held, "__weakref__")


def open_files() -> list[str]:
    return sorted(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else []


@pytest.mark.parametrize("kind", IN_FILES)
def test_a_portion_of_files_is_small(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its bytes do not depend on how much there is beside it."""
    source = opened(kind, tmp_path, monkeypatch)
    many = np.tile(np.arange(IMAGES), 11)[:256]
    assert len(pickle.dumps(source.portion(many))) < 40_000
    assert len(pickle.dumps(source.portion([3]))) < 4_000


# --- in another process


def read_audited(message: bytes, folder: str, pipe: Connection) -> None:
    """Read all images of a pickled portion in another working folder; send them, and what was opened or listed."""
    os.chdir("/")
    touched: list[str] = []
    sys.addaudithook(lambda event, args: touched.append(os.fsdecode(args[0])) if seen_by(event, args) else None)
    portion: ImageSource = pickle.loads(message)
    before = [path for path in touched if folder in path]
    pixels = portion.read(range(len(portion)))
    pipe.send((pixels, portion.seen, portion.numbers, before, [path for path in touched if folder in path]))


def seen_by(event: str, args: tuple[object, ...]) -> bool:
    return event in ("open", "os.listdir", "os.scandir") and isinstance(args[0], str | bytes)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "tars", "parquet", "npz in rows", "zarr"])
def test_another_process_needs_and_touches_these_images_alone(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: ForkServerContext
):
    source = opened(kind, tmp_path, monkeypatch)
    rows = [2, 5, 3] if kind == "parquet" else [23, 20, 21]
    files = {source.names[row] for row in rows} if kind == "folder" else FILES_OF[kind]
    if kind == "tars":
        rows = [row for row in range(IMAGES) if "train-0" in str(source.container.where(row))][2:5]  # type: ignore[attr-defined]
    expected = source.read(rows)
    message = pickle.dumps(source.portion(rows))
    for file in (tmp_path / "here").rglob("*"):
        if file.is_file() and not any(file.as_posix().endswith(name) for name in files):
            file.unlink()
    receiver, sender = processes.Pipe(duplex=False)
    process = processes.Process(target=read_audited, args=(message, str(tmp_path), sender))
    process.start()
    pixels, seen, numbers, before, touched = receiver.recv()
    process.join()
    np.testing.assert_array_equal(pixels, expected)
    assert numbers.tolist() == rows
    assert before == []
    assert all(any(path.endswith(name) for name in files) for path in touched)
    assert seen.checksums.tolist() == source.checksums(rows).tolist()


FILES_OF = {
    "tars": {"train-0.tar"},
    "parquet": {"train-0.parquet"},
    "npz in rows": {"train_data_batch_2.npz"},
    "zarr": {"images.zarr/c/4/0/0/0", "images.zarr/zarr.json"},
}


@pytest.mark.parametrize("kind", ["zip", "tars", "parquet", "npy", "npz in rows", "idx"])
def test_a_file_that_was_changed_is_the_error_that_it_is_in_the_whole(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = opened(kind, tmp_path, monkeypatch)
    message = pickle.dumps(source.portion(ROWS))
    os.utime(next(file for file in sorted((tmp_path / "here").rglob("*[!g]")) if file.is_file()), ns=(1, 1))
    errors = []
    for read in (lambda: source.read(ROWS), lambda: pickle.loads(message).read(range(len(ROWS)))):
        with pytest.raises(DataError, match="was changed while it was read") as caught:
            read()
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


@pytest.mark.parametrize("kind", ["folder", "zip", "tars", "parquet", "zarr"])
def test_a_broken_image_is_the_error_that_it_is_in_the_whole(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """All bytes but Parquet's footer become another one, in files whose time and size stay."""
    source = opened(kind, tmp_path, monkeypatch)
    message = pickle.dumps(source.portion(ROWS))
    for file in (tmp_path / "here").rglob("*"):
        if file.is_file() and file.name != "zarr.json":
            damage(file)
    errors = []
    for read in (lambda: source.read([22]), lambda: pickle.loads(message).read([ROWS.index(22)])):
        with pytest.raises(DataError) as caught:
            read()
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


def damage(file: Path) -> None:
    times, content = file.stat(), file.read_bytes()
    footer = content[-3000:] if file.suffix == ".parquet" else b""
    file.write_bytes(b"\xff" * (len(content) - len(footer)) + footer)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_what_was_seen_is_noted_also_if_an_executor_hands_over_read_only_arrays():
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(Seen.nothing(3), protocol=5, buffer_callback=buffers.append)
    loaded = pickle.loads(data, buffers=[bytes(buffer) for buffer in buffers])
    loaded.note(np.array([0, 2]), Seen(*(np.ones(2, values.dtype) for values in vars(loaded).values())))
    assert loaded.resized.tolist() == [True, False, True]
