"""CRC-32 of each image's bytes: known once it was read, without reading it twice."""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import zarr
from PIL import Image

from hvae_codec.data import containers
from hvae_codec.data.folders import Folder
from hvae_codec.data.sources import as_source, open_images
from hvae_codec.errors import DataError
from photos import cut, save_png

PATCHES = cut(6)


def opened(path, **options):
    return open_images(path, size=16, channels=3, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, patch in enumerate(PATCHES):
        save_png(tmp_path / "data" / f"{i}.png", patch)
    return tmp_path / "data"


@pytest.fixture
def expected(folder: Path) -> list[int]:
    return [zlib.crc32((folder / f"{i}.png").read_bytes()) for i in range(len(PATCHES))]


def zipped(folder: Path) -> Path:
    with zipfile.ZipFile(folder.parent / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    return folder.parent / "data.zip"


def tarred(folder: Path) -> Path:
    with tarfile.open(folder.parent / "data.tar", "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, file.name)
    return folder.parent / "data.tar"


def in_parquet(folder: Path) -> Path:
    rows = [{"bytes": file.read_bytes(), "path": file.name} for file in sorted(folder.iterdir())]
    pa.parquet.write_table(pa.table({"image": rows}), folder.parent / "data.parquet")
    return folder.parent / "data.parquet"


@pytest.mark.parametrize("packed", [lambda folder: folder, zipped, tarred, in_parquet])
def test_files_have_the_same_checksums_in_every_container(folder, expected, packed):
    source = opened(packed(folder))
    source.read([4, 1])
    assert source.checksums([4, 1]).tolist() == [expected[4], expected[1]]
    assert source.checksums(range(6)).tolist() == expected
    assert source.checksums(range(6)).dtype == np.uint32
    assert source.subset([5, 0]).checksums([0, 1]).tolist() == [expected[5], expected[0]]


def test_a_file_is_read_once(folder, expected, monkeypatch):
    source, opened_files = opened(folder), []
    monkeypatch.setattr(Folder, "open", lambda self, i, open=Folder.open: opened_files.append(i) or open(self, i))
    source.read([3, 2])
    assert source.container.seen.is_checked.tolist() == [False, False, True, True, False, False]
    assert source.checksums([2, 3]).tolist() == expected[2:4]
    assert opened_files == [3, 2]
    assert source.checksums([0]).tolist() == expected[:1]
    assert opened_files == [3, 2, 0]


def test_a_zip_knows_them_without_reading(folder, expected):
    source = opened(zipped(folder))
    assert source.container.seen.is_checked.all()
    Path(folder.parent / "data.zip").unlink()
    assert source.checksums(range(6)).tolist() == expected
    assert source.container.checksum(2) == expected[2]


def test_what_is_read_again_has_the_checksum_of_then(folder, expected):
    source = opened(folder)
    source.read(range(6))
    save_png(folder / "1.png", PATCHES[0])
    assert source.checksums([1]).tolist() == expected[1:2]
    assert source.container.checksum(1) == expected[0]
    source.read([1])
    assert source.checksums([1]).tolist() == expected[:1]


def test_a_large_file_is_read_in_pieces(folder, expected, monkeypatch):
    monkeypatch.setattr(containers, "LARGE_FILE", 100)
    monkeypatch.setattr(containers, "_PIECE", 64)
    source = opened(folder)
    np.testing.assert_array_equal(source.read(range(6)), PATCHES)
    assert source.checksums(range(6)).tolist() == expected
    assert source.container.checksum(0) == expected[0]


def test_a_broken_file_has_one_too(folder, expected):
    content = (folder / "3.png").read_bytes()[:300]
    (folder / "3.png").write_bytes(content)
    source = opened(folder, skip_unusable=True)
    assert [*source.skipped] == ["3.png"]
    assert source.container.seen.checksums[3] == zlib.crc32(content)
    assert source.checksums(range(5)).tolist() == [*expected[:3], *expected[4:]]


def test_a_file_that_is_gone_is_named(folder):
    source = opened(folder)
    (folder / "3.png").unlink()
    with pytest.raises(DataError, match=r"3\.png is broken, truncated or unreadable"):
        source.checksums([3])


def test_elements_of_arrays(tmp_path):
    pixels = np.ascontiguousarray(PATCHES.transpose(0, 2, 3, 1))
    expected = [zlib.crc32(image.tobytes()) for image in pixels]
    np.save(tmp_path / "data.npy", pixels)
    np.savez(tmp_path / "data.npz", images=pixels)
    zarr.create_array(tmp_path / "data.zarr", data=pixels, config={"write_empty_chunks": True})
    for path in ("data.npy", "data.npz", "data.zarr"):
        source = opened(tmp_path / path)
        source.read([2, 5])
        assert source.container.seen.is_checked.tolist() == [False, False, True, False, False, True]
        assert source.checksums(range(6)).tolist() == expected, path
    assert as_source(PATCHES).checksums(range(6)).tolist() == expected


def test_elements_of_deep_arrays_are_as_they_lie_in_the_file(tmp_path):
    pixels = PATCHES.transpose(0, 2, 3, 1).astype(">u2") * 257
    np.save(tmp_path / "data.npy", pixels)
    source = opened(tmp_path / "data.npy", depth=8)
    np.testing.assert_array_equal(source.read([1])[0], PATCHES[1])
    assert source.checksums([1, 2]).tolist() == [zlib.crc32(pixels[i].tobytes()) for i in (1, 2)]


def test_pixels_of_a_python_data_set(folder):
    pixels = [np.ascontiguousarray(patch.transpose(1, 2, 0)) for patch in PATCHES]
    expected = [zlib.crc32(image.tobytes()) for image in pixels]
    for dataset in ([Image.fromarray(image) for image in pixels], [Image.open(f) for f in sorted(folder.iterdir())]):
        source = as_source(dataset)
        source.read([1])
        assert source.container.seen.is_checked.tolist() == [False, True, False, False, False, False]
        assert source.checksums(range(6)).tolist() == expected


def test_a_palette_counts(tmp_path):
    image = Image.fromarray(PATCHES[0].transpose(1, 2, 0)).quantize(4)
    other = image.copy()
    other.putpalette([255 - value for value in image.getpalette()])
    source = as_source([image, other])
    assert len({*source.checksums([0, 1]).tolist()}) == 2
    assert image.tobytes() == other.tobytes()
