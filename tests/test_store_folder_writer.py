"""Shards that are put together without zarr are, byte for byte, those that zarr writes."""

from __future__ import annotations

import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLong

import numpy as np
import pytest
import zarr
from skimage import data

from hvae_codec.storage import swap
from hvae_codec.storage.folder import FolderLocation
from hvae_codec.store.columns import Columns, PositionColumns, VariateColumns
from hvae_codec.store.folder_writer import FolderStoreWriter
from hvae_codec.store.metadata import ImageRecord, ModelRecord, SourceRecord
from hvae_codec.store.quantiser import make_codec
from hvae_codec.store.reader import Store
from hvae_codec.store.schema import WRITE_ALL
from hvae_codec.store.spec import StoreSpec
from hvae_codec.store.workers import Worker

IMAGES, SHARD = 40, 16
"""Two whole row groups and half of one."""


def columns(granularity: str) -> Columns:
    if granularity == "variate":
        return VariateColumns({8: np.array([(1, v) for v in range(5)], np.int32), 1: np.array([(0, 3)], np.int32)})
    return PositionColumns({8: np.array([(1, 0, y, x) for y in range(8) for x in range(y, 8)], np.int32)})


def spec(granularity: str, codec: str, chunk_bytes: int, packing: str = "blosc", dtype: str = "") -> StoreSpec:
    kept = columns(granularity)
    return StoreSpec(
        names=[f"{i}" for i in range(IMAGES)],
        labels=[""] * IMAGES,
        columns=kept,
        steps={r: np.ones(kept.count(r), np.float32) for r in kept.resolutions},
        codec=make_codec(codec),
        model=ModelRecord(hash="ab" * 32),
        mask={},
        image=ImageRecord(size=16, channels=3, bits=8),
        source=SourceRecord(fingerprint="cd" * 32, bytes=1),
        row_group_size=SHARD,
        chunk_bytes=chunk_bytes,
        packing=packing,
        dtypes=dict.fromkeys(kept.resolutions, dtype) if dtype else {},
    )


def latents(spec: StoreSpec) -> dict[int, np.ndarray]:
    """Rows of a photograph in place of latents; the first image has zeros alone."""
    pixels = data.astronaut().astype(np.float32).ravel() / 3 - 40
    found = {}
    for r in spec.resolutions:
        shape = (IMAGES, *spec.columns.item(r))
        found[r] = spec.codec.encode(np.resize(pixels, shape), np.float32(1))
        found[r][0] = 0
    return found


@pytest.mark.slow
@pytest.mark.parametrize("chunk_bytes", [1, 700, 10**6])
@pytest.mark.parametrize(
    ("codec", "how"),
    [
        ("int", ()),
        ("float16", ()),
        ("float32", ()),
        ("int", ("zstd", "int8")),
        ("int", ("zstd", "int16")),
        ("int", ("archive", "int8")),
        ("int", ("archive", "int16")),
    ],
    ids=str,
)
@pytest.mark.parametrize("granularity", ["variate", "position"])
def test_shards_are_those_that_zarr_writes(tmp_path, granularity, codec, how, chunk_bytes):
    wanted = spec(granularity, codec, chunk_bytes, *how)
    numbers, trees = latents(wanted), []
    for name in ("own", "zarr"):
        writer = FolderStoreWriter.create_or_resume(tmp_path / name, wanted)
        for row_group in range(3):
            rows = writer.rows(row_group)
            writer.write(row_group, {r: array[rows.start : rows.stop] for r, array in numbers.items()})
        writer.publish()
        folder = tmp_path / name
        if name == "zarr":
            for r, array in numbers.items():
                shutil.rmtree(folder / f"z{r}" / "c")
                zarr.open_array(folder / f"z{r}", mode="r+").with_config(WRITE_ALL)[:] = array
        trees.append({p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()})
    assert trees[0] == trees[1]
    store, group = Store.open(tmp_path / "own"), zarr.open_group(tmp_path / "own", mode="r")
    for r, array in numbers.items():
        np.testing.assert_array_equal(store.stored(slice(None))[r], array)
        np.testing.assert_array_equal(group[f"z{r}"][:], array)


def write_all(path, wanted: StoreSpec) -> None:
    writer, numbers = FolderStoreWriter.create_or_resume(path, wanted, overwrite=True), latents(wanted)
    for row_group in range(3):
        rows = writer.rows(row_group)
        writer.write(row_group, {r: array[rows.start : rows.stop] for r, array in numbers.items()})


def test_two_workers_that_replace_a_store_at_the_same_time(tmp_path, monkeypatch):
    path, old, new = tmp_path / "out.zarr", spec("variate", "int", 700), spec("variate", "float16", 700)
    write_all(path, old)
    FolderStoreWriter(FolderLocation(path), old).publish()
    write_all(path, new)
    first, second = (FolderStoreWriter(FolderLocation(path), new, True, Worker(k, 2)) for k in range(2))
    finished: list[Future[bool]] = []

    def meanwhile(one, other):
        finished.append(pool.submit(second.finish))
        with pytest.raises(TooLong):
            finished[0].result(0.2)  # it waits
        return exchange(one, other)

    exchange = swap.exchange
    monkeypatch.setattr(swap, "exchange", meanwhile)
    with ThreadPoolExecutor() as pool:
        assert first.finish()
    assert finished[0].result()
    assert Store.open(path).codec == new.codec
    assert [p.name for p in tmp_path.iterdir()] == ["out.zarr"]
