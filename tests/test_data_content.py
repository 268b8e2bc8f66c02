"""Whether images have changed: what is read again, what is trusted, and the files that remember it."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import zarr

from hvae_codec import open_images
from hvae_codec.data.content import content_checksums, remember_content
from hvae_codec.data.name_digests import find_digests, name_digests
from hvae_codec.data.sources import ImageSource, as_source
from hvae_codec.errors import DataError
from hvae_codec.storage import user_cache
from photos import save_png

LONG_AGO = time.time_ns() - 10**12
DAY = 86400


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hvae-codec"


@pytest.fixture
def folder(photo_patches, tmp_path) -> Path:
    for i, patch in enumerate(photo_patches[:6]):
        save_png(tmp_path / "data" / "cats" / f"{i}.png", patch)
    age(*(tmp_path / "data").rglob("*.png"))
    return tmp_path / "data"


def age(*files: Path, to: int = LONG_AGO) -> None:
    for file in files:
        os.utime(file, ns=(to, to))


def opened(path: Path) -> ImageSource:
    return open_images(path, size=16, channels=3)


def crcs(folder: Path) -> list[int]:
    return [zlib.crc32(file.read_bytes()) for file in sorted(folder.rglob("*.png"))]


def read_again(path: Path, **options) -> list[int]:
    """Images whose bytes are read when their checksums are asked for, which must be right."""
    source, counts = opened(path), []
    checksums = content_checksums(source, progress=lambda *done: counts.append(done), **options)
    found = np.flatnonzero(source.container.seen.is_checked).tolist()
    assert counts[-1:] == ([(len(found), len(found))] if found else [])
    if any(path.glob("cats/*.png")):
        assert checksums.tolist() == crcs(path)
    return found


def edit(file: Path) -> None:
    """Change one byte, and not the size."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_only_what_may_have_changed_is_read_again(folder, photo_patches):
    assert read_again(folder) == [*range(6)]
    assert read_again(folder) == []
    edit(folder / "cats/2.png")
    assert read_again(folder) == [2]
    assert read_again(folder) == [2]  # too young to be trusted
    age(folder / "cats/2.png", to=LONG_AGO + 1)
    assert read_again(folder) == [2]
    assert read_again(folder) == []
    (folder / "cats/0.png").unlink()
    save_png(folder / "cats/6.png", photo_patches[7])
    age(folder / "cats/6.png")
    assert read_again(folder) == [5]
    age(folder / "cats/4.png", to=LONG_AGO - 5)  # touched, and older
    assert read_again(folder) == [3]
    assert read_again(folder) == []


def test_an_edit_whose_time_is_set_back_is_found(folder):
    assert read_again(folder) == [*range(6)]
    tick()
    edit(folder / "cats/3.png")
    age(folder / "cats/3.png")
    assert (read_again(folder), read_again(folder)) == ([3], [])


def test_another_file_of_the_same_time_is_found(folder, photo_patches, tmp_path):
    """A link is set to another version, or a folder takes another one's place; archives set times when unpacked."""
    tick()
    shutil.copytree(folder, tmp_path / "second")
    edit(tmp_path / "second/cats/4.png")
    age(*(tmp_path / "second").rglob("*.png"))
    current = tmp_path / "current"
    current.symlink_to(folder)
    assert (read_again(current), read_again(current)) == ([*range(6)], [])
    current.unlink()
    current.symlink_to(tmp_path / "second")
    assert read_again(current) == [*range(6)]
    assert (read_again(folder), read_again(folder)) == ([*range(6)], [])
    folder.rename(tmp_path / "first")
    (tmp_path / "second").rename(folder)
    assert read_again(folder) == [*range(6)]


def test_a_tar_and_an_array_whose_times_are_set_back(folder, photo_patches, tmp_path):
    array = photo_patches[:6].transpose(0, 2, 3, 1)
    files = {"a.npy": lambda images: np.save(tmp_path / "a.npy", images), "b.tar": lambda images: tar(images)}

    def tar(images) -> None:
        with tarfile.open(tmp_path / "b.tar", "w") as archive:
            for i, image in enumerate(images):
                save_png(tmp_path / "image.png", image.transpose(2, 0, 1))
                content = (tmp_path / "image.png").read_bytes().ljust(2000, b"\0")
                info = tarfile.TarInfo(f"{i}.png")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))

    for name, write in files.items():
        for images in (array, array[::-1]):
            write(images)
            age(tmp_path / name)
            assert (read_again(tmp_path / name), read_again(tmp_path / name)) == ([*range(6)], []), name
            tick()


def test_columns_of_parquet_files_are_remembered_apart(photo_patches, tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    contents = [patch.transpose(1, 2, 0) for patch in photo_patches[:8]]
    files = [b"P6 16 16 255\n" + content.tobytes() for content in contents]  # of one size
    columns = {name: [{"bytes": f, "path": None} for f in part] for name, part in (("a", files[:4]), ("b", files[4:]))}
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    table = pyarrow.table({name: pyarrow.array(part, kind) for name, part in columns.items()})
    path = tmp_path / "x.parquet"
    parquet.write_table(table, path, compression="none", use_dictionary=False, write_statistics=False)
    age(path)
    for column, part in (("a", files[:4]), ("b", files[4:])):
        source = open_images(path, size=16, channels=3, column=column)
        assert content_checksums(source).tolist() == [zlib.crc32(file) for file in part]


def tick() -> None:
    """Wait until the system's clock of files has gone on."""
    time.sleep(0.02)


@pytest.mark.usefixtures("without_ctimes")
def test_an_edit_whose_time_is_set_back_is_found_by_check_alone(folder):
    before = content_checksums(opened(folder))
    edit(folder / "cats/3.png")
    age(folder / "cats/3.png")
    np.testing.assert_array_equal(content_checksums(opened(folder)), before)
    assert (content_checksums(opened(folder), check=True) != before).nonzero()[0].tolist() == [3]
    assert read_again(folder) == []  # what was read is remembered in the place of what was wrong


def test_another_size_at_the_same_time_is_another_file(folder):
    assert read_again(folder) == [*range(6)]
    file = folder / "cats/1.png"
    file.write_bytes(file.read_bytes() + b"\0")
    age(file)
    assert read_again(folder) == [1]


def test_some_images_alone(folder):
    source = opened(folder).subset([4, 1, 3])
    assert content_checksums(source, [0, 2]).tolist() == [crcs(folder)[4], crcs(folder)[3]]
    assert np.flatnonzero(source.container.seen.is_checked).tolist() == [3, 4]
    assert read_again(folder) == [0, 1, 2, 5]


def test_what_other_work_has_read_is_remembered(folder):
    source = opened(folder)
    source.read([0, 5])
    assert content_checksums(source.subset([0, 5])).tolist() == [crcs(folder)[0], crcs(folder)[5]]
    remember_content(source)
    assert read_again(folder) == [1, 2, 3, 4]


def test_a_damaged_or_unwritable_cache_costs_time_alone(folder, cache, monkeypatch):
    read_again(folder)
    (file,) = (cache / "checksums").iterdir()
    content = file.read_bytes()
    for damaged in (b"", content[:50], content[:-3], content[:100] + b"x" + content[101:], b"PK\5\6" + 18 * b"\0"):
        file.write_bytes(damaged)
        assert read_again(folder) == [*range(6)]
        assert read_again(folder) == []
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cats/0.png"))
    assert read_again(folder) == [*range(6)]
    assert read_again(folder) == [*range(6)]


def test_zips_state_their_checksums_and_check_compares_them(folder, tmp_path):
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder))
    source = opened(path)
    assert content_checksums(source).tolist() == content_checksums(source, check=True).tolist() == crcs(folder)
    content = bytearray(path.read_bytes())
    content[path.stat().st_size // 2] ^= 1
    path.write_bytes(content)
    source = opened(path)
    assert content_checksums(source).tolist() == crcs(folder)
    with pytest.raises(DataError, match=r"\.png.*CRC-32"):
        content_checksums(source, check=True)


def test_all_images_of_a_file_have_its_stamp(folder, photo_patches, tmp_path):
    array = photo_patches[:6].transpose(0, 2, 3, 1)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "b.npz", images=array)
    np.savez_compressed(tmp_path / "c.npz", x_train=array[:4], x_test=array[4:])
    with tarfile.open(tmp_path / "d.tar", "w") as archive:
        archive.add(folder, "photos")
    expected = [zlib.crc32(image.tobytes()) for image in array]
    for name in ("a.npy", "b.npz", "c.npz", "d.tar"):
        path = tmp_path / name
        assert read_again(path) == [*range(6)], name
        assert read_again(path) == [*range(6)], name  # too young
        age(path)
        assert (read_again(path), read_again(path)) == ([*range(6)], []), name
        if name == "a.npy":
            assert content_checksums(opened(path)).tolist() == expected
        age(path, to=LONG_AGO + 1)
        assert read_again(path) == [*range(6)], name


def test_each_shard_has_a_stamp_of_its_own(folder, tmp_path):
    for i, name in enumerate(("x-0.tar", "x-1.tar")):
        with tarfile.open(tmp_path / name, "w") as archive:
            for number in range(3 * i, 3 * i + 3):
                archive.add(folder / f"cats/{number}.png", f"{number}.png")
        age(tmp_path / name)
    both = tmp_path / "x-{0..1}.tar"
    assert read_again(both) == [*range(6)]
    age(tmp_path / "x-1.tar", to=LONG_AGO + 1)
    assert read_again(both) == [3, 4, 5]


def test_an_older_chunk_in_the_place_of_another_one_is_noticed(photo_patches, tmp_path):
    path = tmp_path / "images"
    zarr.create_array(path, data=photo_patches[:6].transpose(0, 2, 3, 1), chunks=(2, 16, 16, 3))
    age(*(file for file in path.rglob("*") if file.is_file()))
    assert (read_again(path), read_again(path)) == ([*range(6)], [])
    age(next(file for file in (path / "c/1").rglob("*") if file.is_file()), to=LONG_AGO - 1)
    assert (read_again(path), read_again(path)) == ([*range(6)], [])


def test_arrays_in_memory_and_data_sets_are_always_read(photo_patches, cache):
    for images in (photo_patches[:4], [(patch.transpose(1, 2, 0), 0) for patch in photo_patches[:4]]):
        source = (
            as_source(images) if isinstance(images, np.ndarray) else open_images(Pairs(images), size=16, channels=3)
        )
        assert content_checksums(source).tolist() == [
            zlib.crc32(p.transpose(1, 2, 0).tobytes()) for p in photo_patches[:4]
        ]
        remember_content(source)
    assert not cache.exists()


class Pairs:
    def __init__(self, pairs):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, i):
        return self.pairs[i]


def test_a_broken_file_is_named(folder):
    source = opened(folder)
    (folder / "cats/3.png").unlink()
    with pytest.raises(DataError, match=r"cats/3\.png"):
        content_checksums(source)


def test_files_that_nobody_uses_are_removed(cache, monkeypatch):
    def files() -> list[str]:
        return sorted(file.read_text()[0] for kind in ("indices", "checksums") for file in (cache / kind).glob("*"))

    now = time.time()
    for name, kind, days in (("a", "indices", 91), ("b", "checksums", 89), ("c", "indices", 95)):
        user_cache.write_cached(kind, name, name.encode() * 100)
        os.utime(user_cache._file(kind, name), (now - DAY * days,) * 2)
    assert user_cache.read_cached("indices", "c") == b"c" * 100  # which is use
    user_cache.write_cached("checksums", "d", b"d" * 100)
    assert files() == ["b", "c", "d"]
    monkeypatch.setattr(user_cache, "LARGEST_CACHE", 250)
    user_cache.write_cached("checksums", "e", b"e" * 100)
    assert "e" in files()
    assert "b" not in files()
    assert len(files()) == 2
    user_cache.write_cached("checksums", "f", b"f" * 300)
    assert files() == ["f"]


def test_names_are_found_by_their_digests():
    names = [f"{i}/é.png" for i in range(1000)]
    wanted = name_digests([names[7], "nobody", names[999], names[0]])
    assert find_digests(wanted, name_digests(names)).tolist() == [7, -1, 999, 0]
    assert find_digests(wanted, name_digests([])).tolist() == [-1] * 4
