"""Chunks read without zarr are what zarr reads; other layouts are left to zarr; the cache has a bound."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, BytesCodec, ShardingCodec

from hvae_codec import open_store
from hvae_codec.errors import StoreError
from hvae_codec.storage.cache import ChunkCache
from hvae_codec.store.arrays import shard_key
from hvae_codec.store.quantiser import FloatCodec, IntCodec
from hvae_codec.store.shards import ShardedArray
from hvae_codec.verification.row_group import checked_row_group
from stores import GRANULARITIES, make_spec, make_store, without_copy


def reader(store, name, limit=2**20):
    return ShardedArray.of(store.group[name], store.path / name, ChunkCache(limit))


@pytest.mark.slow
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("codec", [IntCodec(), FloatCodec("float16")])
@pytest.mark.parametrize("limit", [0, 2**20])
def test_the_same_numbers_as_zarr_reads(tmp_path, codec, granularity, limit):
    store = make_store(tmp_path / "out.zarr", make_spec(codec=codec, granularity=granularity))
    for r in store.resolutions:
        expected, sharded = store.group[f"z{r}"][:], reader(store, f"z{r}", limit)
        for rows in ([], [3], range(20), [19, 0, 7, 8, 7, 3]):
            numbers = sharded.read(rows)
            assert numbers.dtype == expected.dtype
            np.testing.assert_array_equal(numbers, expected[list(rows)])


def test_what_is_read_can_be_changed_and_stays_apart(tmp_path):
    store = make_store(tmp_path / "out.zarr")
    for rows in (3, slice(3, 6)):
        first = store.stored(rows)
        expected = {r: numbers.copy() for r, numbers in first.items()}
        for numbers in first.values():
            numbers[:] = 7
        for r, numbers in store.stored(rows).items():
            np.testing.assert_array_equal(numbers, expected[r])


@pytest.mark.parametrize(
    "codecs",
    [
        [BytesCodec(), BloscCodec(cname="zstd")],
        [ShardingCodec(chunk_shape=(4, 2, 16, 16), codecs=[BytesCodec()])],
        [ShardingCodec(chunk_shape=(4, 1, 16, 16))],
    ],
)
def test_arrays_with_other_codecs_are_read_by_zarr(tmp_path, codecs):
    store = make_store(tmp_path / "out.zarr")
    without_copy(store.path)
    expected = store.latents(slice(None))
    numbers = store.group["z16"][:]
    group = zarr.open_group(store.path, mode="r+")
    array = zarr.Array.from_dict(group.store_path / "z16", _with_codecs(store.path / "z16" / "zarr.json", codecs))
    group.create_array("z16", shape=numbers.shape, dtype="int16", chunks=(4, 2, 16, 16), overwrite=True)
    (store.path / "z16" / "zarr.json").write_text(json.dumps(array.metadata.to_dict(), default=int))
    zarr.open_array(store.path / "z16", mode="r+")[:] = numbers
    attribute = {
        key: value for key, value in store.metadata.to_attribute().items() if key not in ("arrays", "checksum", "copy")
    }
    zarr.open_group(store.path, mode="r+").attrs["hvae_codec"] = attribute
    again = open_store(store.path)
    assert reader(again, "z16") is None
    np.testing.assert_array_equal(again.latents(slice(None))["z16"], expected["z16"])
    np.testing.assert_array_equal(again.latents(slice(17, 2, -3))["z16"], expected["z16"][17:2:-3])
    np.testing.assert_array_equal(again.gather([4, 5, 2])[16], numbers[[4, 5, 2]])


def _with_codecs(file, codecs):
    document = json.loads(file.read_text())
    document["codecs"] = [codec.to_dict() for codec in codecs]
    document["chunk_grid"]["configuration"]["chunk_shape"] = [8, 2, 16, 16]
    return document


def test_the_cache_has_a_bound_and_forgets_the_oldest():
    cache = ChunkCache(100)
    for key in range(5):
        cache.put(key, np.zeros(40, np.uint8))
        assert cache.get(key) is not None
        cache.get(0)
    assert cache.nbytes == 80
    assert [key for key in range(5) if cache.get(key) is not None] == [0, 4]
    cache.put("large", np.zeros(101, np.uint8))
    assert cache.get("large") is None


def test_chunks_are_kept_until_their_shard_changes(tmp_path):
    store = make_store(tmp_path / "out.zarr")
    expected = store.stored(0)[16]
    shard = store.path / "z16" / shard_key(0, store.columns.item(16))
    content = shard.read_bytes()
    shard.write_bytes(content[:-10])
    with pytest.raises(StoreError, match="z16 is damaged at image 0"):
        store.stored(0)
    shard.unlink()
    with pytest.raises(StoreError, match="z16 lacks latents of image 0"):
        store.stored(0)
    shard.write_bytes(content)
    np.testing.assert_array_equal(store.stored(0)[16], expected)
    assert 0 < store.cache.nbytes <= store.cache.limit


def test_a_store_can_be_pickled(tmp_path):
    store = open_store(make_store(tmp_path / "out.zarr").path, cache_bytes=123)
    again = pickle.loads(pickle.dumps(store))
    assert again.cache.limit == 123
    np.testing.assert_array_equal(again.latents(3)["z4"], store.latents(3)["z4"])


def test_a_check_reads_what_is_on_the_disk(tmp_path):
    store = make_store(tmp_path / "out.zarr")
    checked_row_group(store, 0)
    assert store.cache.nbytes == 0


def test_a_shard_replaced_between_two_looks_at_it_gives_its_own_chunks(tmp_path, monkeypatch):
    path, look = make_store(tmp_path / "out.zarr", make_spec(images=5)).path, os.stat
    longer = make_store(tmp_path / "longer.zarr")
    store = open_store(path)
    expected = store.stored(3)[16]
    for key in [key for key in store.cache._arrays if len(key) == 5]:  # chunks, not the indices of the shards
        store.cache._arrays.pop(key)
    name = Path("z16", shard_key(0, store.columns.item(16)))

    def replaced_afterwards(place, **options):
        state = look(place, **options)
        if str(place) == str(path / name) and (longer.path / name).exists():
            (longer.path / name).rename(path / name)
        return state

    monkeypatch.setattr(os, "stat", replaced_afterwards)
    np.testing.assert_array_equal(store.stored(3)[16], expected)


def test_an_index_that_is_another_ones_is_read_again(tmp_path):
    store = make_store(tmp_path / "out.zarr")
    expected = store.stored(3)[16]
    indices = {key: index for key, index in store.cache._arrays.items() if len(key) == 4}
    store.cache._arrays.clear()
    for key, index in indices.items():  # as of a file system whose times and numbers do not tell files apart
        store.cache.put(key, index[::-1] + np.uint64(1))
    np.testing.assert_array_equal(store.stored(3)[16], expected)
