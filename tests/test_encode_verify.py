"""Damage of every kind, to every file of a store: it is told, and never read as latents."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from test_encode_store import GRANULARITIES, make_spec, make_store, photo_latents, tree, write_all

from hvae_codec.encode.latents import FloatCodec, IntCodec
from hvae_codec.encode.store import open_store
from hvae_codec.encode.verify import check_written, verify
from hvae_codec.errors import HvaeCodecError, StoreError

KINDS = [("variate", IntCodec()), ("position", IntCodec()), ("variate", FloatCodec("float16"))]


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("images", [1, 8, 20])
def test_a_whole_store_is_well(tmp_path, granularity, images):
    store = make_store(tmp_path / "out.zarr", make_spec(images, granularity=granularity))
    seen = []
    report = verify(store.path, progress=lambda done, total: seen.append((done, total)))
    assert report.ok
    assert (report.damages, report.notes, report.damaged_row_groups) == ([], [], [])
    assert (report.images, report.row_groups, report.files) == (images, -(-images // 8), len(tree(store.path)))
    assert seen == [(min(8 * r + 8, images), images) for r in range(report.row_groups)]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0]}-{kind[1].name}")
def whole(request, tmp_path_factory) -> Path:
    granularity, codec = request.param
    spec = make_spec(12, codec=codec, granularity=granularity)
    return make_store(tmp_path_factory.mktemp("whole") / "out.zarr", spec).path


def flip(rng: np.random.Generator, content: bytes) -> bytes:
    changed = bytearray(content)
    changed[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def damaged(kind: str, rng: np.random.Generator, content: bytes) -> bytes | None:
    """What a damaged file holds; None where it is gone."""
    if kind == "flip":
        return flip(rng, content)
    return None if kind == "delete" else content[: int(rng.integers(len(content)))]


@pytest.mark.parametrize("kind", ["flip", "truncate", "delete"])
def test_every_damaged_file_is_named(whole, tmp_path, kind):
    rng, path = np.random.default_rng(1), tmp_path / "out.zarr"
    shutil.copytree(whole, path)
    expected = open_store(whole).stored(slice(None))
    for name, content in tree(whole).items():
        for _ in range(3 if kind == "flip" else 1):
            changed = damaged(kind, rng, content)
            (path / name).unlink() if changed is None else (path / name).write_bytes(changed)
            if not means_the_same(name, content, changed):
                assert_told(path, name)
            assert_never_wrong(path, expected)
            (path / name).write_bytes(content)
    assert verify(path).ok


def means_the_same(name: str, content: bytes, changed: bytes | None) -> bool:
    """Whether a changed `zarr.json` says what it said before: a flipped bit may turn a space into no other meaning."""
    try:
        return name.endswith("zarr.json") and changed is not None and json.loads(content) == json.loads(changed)
    except ValueError:
        return False


def assert_told(path: Path, name: str) -> None:
    try:
        report = verify(path)
    except StoreError as error:  # without the group's metadata nothing else can be told
        assert name == "zarr.json"
        assert str(path) in str(error)
        return
    files = {damage.file for damage in report.damages}
    assert name in files, (name, report.damages)
    array, _, key = name.partition("/")
    if array[0] == "z" and key.startswith("c/") or array == "committed" and key.startswith("c/"):
        row_group = int(key.split("/")[1])
        assert report.damaged_row_groups == [row_group]
        (damage,) = report.damages
        assert set(damage.images) <= set(range(8 * row_group, min(8 * row_group + 8, 12)))
        assert list(damage.names) == [f"photo/{i:03d}-é.png" for i in damage.images[:3]]
        assert damage.names


def assert_never_wrong(path: Path, expected: dict[int, np.ndarray]) -> None:
    """Every way of reading gives the right numbers or an error."""
    try:
        store = open_store(path)
    except HvaeCodecError:
        return
    for index in (slice(None), slice(0, 8), slice(8, 12), 0, 11):
        try:
            stored, latents = store.stored(index), store.latents(index)
        except HvaeCodecError:
            continue
        assert stored.keys() == expected.keys()
        for r, numbers in stored.items():
            np.testing.assert_array_equal(numbers, expected[r][index])
            z = store.codec.decode(numbers, store.columns.spread(make_spec_steps(store)[r]))
            np.testing.assert_array_equal(latents[f"z{r}"], z)


def make_spec_steps(store):
    return make_spec(12, codec=store.codec, granularity=store.columns.granularity).steps
