"""Damaged stores are mended from their images, byte for byte, and never with other images."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_encode_store import tree

from hvae_codec import LatentMask, encode, kl_stats, load_model, open_images, open_store, repair, verify
from hvae_codec.encode import repair_row_groups
from hvae_codec.encode.pipeline import EncodeOptions
from hvae_codec.encode.repair import RepairOptions
from hvae_codec.errors import StoreError
from hvae_codec.model.checkpoint import save_model
from hvae_codec.model.hvae import HVAE

IMAGES, SHARD = 20, 8


@pytest.fixture(scope="module")
def folder(cut_patches, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i, pixels in enumerate(cut_patches(IMAGES)):
        path = folder / ("cats" if i % 3 else "dogs") / f"{i:03d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(path)
    return folder


@pytest.fixture(scope="module")
def source(folder):
    return open_images(folder, size=16, channels=3)


@pytest.fixture(scope="module")
def stats(tiny_model, source):
    return kl_stats(tiny_model, source)


@pytest.fixture(scope="module", params=["variate", "position"])
def whole(request, tiny_model, source, stats, tmp_path_factory) -> Path:
    """A store of three row groups, the last one short, with each image's rate and distortion."""
    path = tmp_path_factory.mktemp("stores") / "out.zarr"
    mask = LatentMask.from_keep(stats, 0.5, granularity=request.param)
    options = EncodeOptions(batch_size=4, shard=SHARD, evaluate=True)
    return encode(tiny_model, source, path, mask=mask, stats=stats, options=options).path


@pytest.fixture
def store(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "out.zarr"))


@pytest.fixture
def mend(store, source, tiny_model, stats) -> Callable:
    def call(images=source, model=tiny_model, **options):
        return repair(store, images, model, stats=stats, options=RepairOptions(batch_size=4), **options)

    return call


def shards(path: Path, row_group: int, arrays: str = "z*") -> list[Path]:
    return sorted(p for a in path.glob(arrays) for p in (a / "c" / str(row_group)).rglob("*") if p.is_file())


def flip(path: Path, at: int = 20) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def damage(path: Path, what: str) -> None:
    """The kinds of damage that are mended, by name."""
    if what == "a flipped byte":
        flip(shards(path, 1)[-1])
    elif what == "a lost shard":
        shards(path, 2)[0].unlink()
    elif what == "a lost row group":
        for shard in shards(path, 0):
            shard.unlink()
    elif what == "a lost digest":
        (path / "committed" / "c" / "1").unlink()
    elif what == "a lost row group and its digest":
        for file in (*shards(path, 2), path / "committed" / "c" / "2"):
            file.unlink()
    elif what == "swapped shards":
        first, second = shards(path, 0)[-1], shards(path, 1)[-1]
        content = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(content)
    elif what == "lost rates":
        (path / "rate" / "c" / "1").unlink()
        flip(path / "distortion" / "c" / "2")
    elif what == "tables":
        for name in ("name", "label", *(p.name for p in path.glob("step*")), *(p.name for p in path.glob("dimension*"))):
            shutil.rmtree(path / name / "c")
    elif what == "array metadata":
        for array in path.iterdir():
            if array.is_dir():
                (array / "zarr.json").write_text("{}")
        shards(path, 1)[0].unlink()


KINDS = [
    "a flipped byte",
    "a lost shard",
    "a lost row group",
    "a lost digest",
    "a lost row group and its digest",
    "swapped shards",
    "lost rates",
    "tables",
    "array metadata",
]


@pytest.mark.parametrize("what", KINDS)
def test_a_repaired_store_is_what_it_was(whole, store, mend, what):
    damage(store, what)
    assert not verify(store).ok
    seen = []
    report = mend(progress=lambda done, total: seen.append((done, total)))
    assert report.after.ok, report.after.damages
    assert (report.notes == []) == (what != "a lost row group and its digest"), report.notes
    assert set(report.rewritten) <= set(tree(whole))
    assert tree(store) == tree(whole)
    assert what == "tables" or seen[-1][0] == seen[-1][1] > 0
    assert mend().rewritten == ()
