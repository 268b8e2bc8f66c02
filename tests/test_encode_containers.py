"""Stores of images in archives: the latents of the folder that was archived; append, verify and repair work."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hvae_codec import ImageSource, LatentMask, Store, encode_images, kl_stats, open_images, open_store, repair, verify
from hvae_codec.encode.append import append
from hvae_codec.encode.pipeline import EncodeOptions
from photos import save_png
from stores import tree

pytestmark = pytest.mark.slow

OLD, NEW = 6, 5
"""Images of the store, and those appended; in row groups of 4."""


@pytest.fixture(scope="module")
def folder(cut_patches, tmp_path_factory) -> Path:
    """Folders `old` and `new`, and a zip and a tar of each."""
    folder = tmp_path_factory.mktemp("archives")
    for i, pixels in enumerate(cut_patches(OLD + NEW)):
        save_png(folder / ("old" if i < OLD else "new") / "cats" / f"{i:02d}.png", pixels)
    for name in ("old", "new"):
        for kind in ("zip", "tar"):
            shutil.make_archive(str(folder / name), kind, folder / name)
    return folder


@pytest.fixture(scope="module")
def encode(folder, tiny_model):
    """`encode(kind, path)`: writes a store of the old images, appends the new ones, and gives the old ones."""
    stats = kl_stats(tiny_model, open_images(folder / "old", size=16, channels=3))
    mask = LatentMask.from_keep(stats, 0.5)
    options = EncodeOptions(batch_size=4, row_group_size=4)

    def encode_kind(kind: str, path: Path) -> ImageSource:
        old, new = (open_images(folder / f"{name}{kind}", size=16, channels=3) for name in ("old", "new"))
        encode_images(tiny_model, old, path, mask=mask, stats=stats, options=options)
        append(tiny_model, new, path, batch_size=4)
        return old

    return encode_kind


@pytest.fixture(scope="module")
def expected(encode, tmp_path_factory) -> Store:
    path = tmp_path_factory.mktemp("stores") / "folder.zarr"
    encode("", path)
    return open_store(path)


@pytest.mark.parametrize("kind", [".zip", ".tar"])
def test_a_store_of_an_archive_is_that_of_its_folder(encode, expected, tiny_model, tmp_path, kind):
    old = encode(kind, tmp_path / "archive.zarr")
    found = open_store(tmp_path / "archive.zarr")
    assert (found.names, found.labels) == (expected.names, expected.labels)
    whole = tree(tmp_path / "archive.zarr")
    latents = {name: content for name, content in whole.items() if name.startswith("z") and "/c/" in name}
    assert latents == {name: content for name, content in tree(expected.path.folder).items() if name in latents}
    assert verify(tmp_path / "archive.zarr").ok
    damaged = tmp_path / "archive.zarr" / min(latents)
    damaged.write_bytes(b"damaged")
    assert not verify(tmp_path / "archive.zarr").ok
    assert repair(tmp_path / "archive.zarr", old, tiny_model).after.ok
    assert tree(tmp_path / "archive.zarr") == whole
