"""Names and labels of sources: in order, few bytes per image, and the same in every kind of container."""

from __future__ import annotations

import hashlib
import io
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from hvae_codec.data.archive_index import ArchiveIndex
from hvae_codec.data.sources import ImageSource, as_source, open_images
from hvae_codec.data.splits import label_of
from hvae_codec.data.tars import Tars
from hvae_codec.data.unchanged_files import UnchangedFiles
from hvae_codec.texts.classes import ClassTexts
from hvae_codec.texts.packed import PackedTexts
from photos import save_png

IMAGES = 10_000

# A slash is above a dot and a minus, and below digits and letters.
NAMES = ("a-b/1.png", "a.png", "a/x.png", "a/x/1.png", "a0.png", "ab/Ä.png", "Z/z.png", "é/1.png", "a.b/c/2.png")


def opened(path: Path) -> ImageSource:
    return open_images(path, size=16, channels=3)


def digest_names(images: int) -> list[str]:
    return sorted(f"{i % 10}/{hashlib.md5(str(i).encode()).hexdigest()}x.png" for i in range(images))  # 39 characters


def test_names_in_folders_are_in_the_order_of_whole_names(tmp_path: Path, photo_patches):
    for name, pixels in zip(NAMES, photo_patches, strict=False):
        save_png(tmp_path / name, pixels)
    source = opened(tmp_path)
    assert source.names == sorted(NAMES)
    assert source.labels == [label_of(name) for name in sorted(NAMES)]
    assert [int(size) for size in source.container.file_bytes] == [
        (tmp_path / name).stat().st_size for name in sorted(NAMES)
    ]
    np.testing.assert_array_equal(source.read([source.names.index("a.png")])[0], photo_patches[1])


def test_shards_whose_names_are_mixed_are_merged(tmp_path: Path, photo_patches):
    """Every third image is in one tar, and labels say which."""
    names = [f"{i:03d}-{'x' * (i % 9)}.png" for i in range(12)]
    for shard in range(3):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for i in range(shard, 12, 3):
                for name, content in ((names[i], png(tmp_path, photo_patches[i])), (f"{names[i][:-4]}.cls", b"%d" % i)):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    source = opened(tmp_path)
    assert source.names == names
    assert source.labels == [str(i) for i in range(12)]
    np.testing.assert_array_equal(source.read(range(12)), photo_patches[:12])


def png(folder: Path, pixels) -> bytes:
    save_png(folder / "scratch" / "x.png", pixels)
    content = (folder / "scratch" / "x.png").read_bytes()
    (folder / "scratch" / "x.png").unlink()
    return content


def test_a_selection_of_a_selection_has_the_names_of_its_images(photo_patches):
    source = as_source(photo_patches[:10])
    twice = source.subset([9, 1, -3, 5]).subset(np.array([2, -1, 0]))
    assert twice.names == ["00000007", "00000005", "00000009"]
    np.testing.assert_array_equal(twice.read([0, 1, 2]), photo_patches[[7, 5, 9]])
    with pytest.raises(IndexError):
        source.subset([10])


@pytest.mark.parametrize(("numbered", "most"), [(False, 140), (True, 90)])
def test_millions_of_names_would_fit(tmp_path: Path, numbered: bool, most: int):
    """Bytes per image of a selection, of which 48 are its name; all else is positions, sizes, and what is counted."""
    np.save(tmp_path / "x.npy", np.zeros((IMAGES, 8, 8), np.uint8))
    tracemalloc.start()
    try:
        source = open_images(tmp_path / "x.npy", size=8, channels=1) if numbered else tar_source(tmp_path)
        chosen = source.subset(np.flatnonzero(np.arange(IMAGES) % 10))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(chosen) == 0.9 * IMAGES
    assert held / IMAGES < most


def tar_source(folder: Path) -> ImageSource:
    """Names without a tar: it would take seconds to make."""
    names, zeros = digest_names(IMAGES), np.zeros(IMAGES, np.int64)
    labels = ClassTexts.of(map(label_of, names))
    index = ArchiveIndex(
        PackedTexts.of(names), labels, zeros, zeros, zeros, zeros.astype(np.uint32), zeros.astype(bool)
    )
    (folder / "x.tar").touch()
    container = Tars(folder / "x.tar", UnchangedFiles([folder / "x.tar"]), [index], size=8, channels=1)
    return ImageSource(container.names, container.labels, 8, 1, {}, container, np.arange(IMAGES))
