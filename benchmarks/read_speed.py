"""How fast a store is read: opening it, one image at random, and epochs of a torch data set.

    python benchmarks/read_speed.py --images 100000

The store has random codes in arrays like the quickstart's (--like takes those of a store of yours); no model is needed.
All is read from the disk's cache in memory: what is measured is this package, zarr and torch.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from conditions import conditions
from rich.console import Console
from rich.table import Table
from torch.utils.data import BatchSampler, DataLoader

from hvae_codec import LatentDataset, RowGroupSampler, open_store
from hvae_codec.store.columns import VariateColumns
from hvae_codec.store.folder_writer import FolderStoreWriter
from hvae_codec.store.metadata import ImageRecord, ModelRecord, SourceRecord
from hvae_codec.store.quantiser import IntCodec
from hvae_codec.store.reader import Store
from hvae_codec.store.spec import StoreSpec

CHANNELS = {1: 16, 4: 2, 8: 2, 16: 3, 32: 1}
"""Latent resolution to kept variates: those of the quickstart's store at 3%, 1,968 numbers an image."""
CODE_STD = 1.0
BATCH = 64

Rows = Iterator[tuple[str, str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--like", type=Path, help="store whose kept variates are taken")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="processes that read for DataLoader")
    parser.add_argument("--reads", type=int, default=500, help="random images")
    arguments = parser.parse_args()
    channels = CHANNELS if arguments.like is None else channels_of(open_store(arguments.like))
    print(f"{conditions()}\npython benchmarks/read_speed.py --images {arguments.images}")
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        write(Path(folder) / "out.zarr", arguments.images, channels)
        rows = [("writing it", f"{time.perf_counter() - started:.0f} s")]
        rows += measure(Path(folder) / "out.zarr", arguments.reads, arguments.workers)
    table = Table("what", "result")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def channels_of(store: Store) -> dict[int, int]:
    """Latent resolution to kept variates."""
    return {resolution: store.columns.count(resolution) for resolution in store.resolutions}


def write(path: Path, images: int, channels: dict[int, int]) -> None:
    """A store of random codes at `path`."""
    pairs = {r: np.array([(group, v) for v in range(n)], np.int32) for group, (r, n) in enumerate(channels.items())}
    columns, codec = VariateColumns(pairs), IntCodec()
    spec = StoreSpec(
        names=[f"class{i % 10}/{i:08d}.png" for i in range(images)],
        labels=[f"class{i % 10}" for i in range(images)],
        columns=columns,
        steps={r: np.full(n, 0.5, np.float32) for r, n in channels.items()},
        codec=codec,
        model=ModelRecord(hash="0" * 64),
        mask={},
        image=ImageRecord(size=32, channels=3, bits=8),
        source=SourceRecord(fingerprint="random", bytes=0),
    )
    writer, rng = FolderStoreWriter.create_or_resume(path, spec), np.random.default_rng(0)
    for row_group in writer.pending():
        shapes = {r: (len(writer.rows(row_group)), *columns.item(r)) for r in columns.resolutions}
        codes = {r: np.rint(rng.normal(0, CODE_STD, shape)).astype(codec.dtype) for r, shape in shapes.items()}
        writer.write(row_group, codes)
    writer.publish()


def measure(path: Path, reads: int, workers: list[int]) -> Rows:
    """What is measured of the store at `path`, with what came out."""
    store = open_store(path)
    files = [file for file in path.rglob("*") if file.is_file()]
    yield "images, numbers an image", f"{len(store):,}, {store.kept_dims:,}"
    yield "files, bytes", f"{len(files):,}, {store.nbytes_on_disk():,}"
    yield "opening", median_ms(lambda: open_store(path), 20)
    yield "opening, and the names", median_ms(lambda: open_store(path).names, 3)
    at = np.random.default_rng(1).integers(len(store), size=reads).tolist()
    yield "a random image, nothing cached", per_image(open_store(path, cache_bytes=0), at)
    yield "a random image, chunks cached (64 MiB)", per_image(store, at)
    yield "a random image through zarr alone", per_image(without_own_reader(open_store(path)), at)
    yield "all latents in order, slices of 1,024", rate(len(store), slices(store))
    for count in workers:
        yield f"shuffled epoch, {count} workers, items", rate(len(store), epoch(path, count, whole=False))
        yield f"shuffled epoch, {count} workers, whole batches", rate(len(store), epoch(path, count, whole=True))


def median_ms(call: Callable[[], Any], times: int) -> str:
    """Median and 95th percentile of a call's time."""
    call()
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - started))
    return f"{statistics.median(taken):.2f} ms (95%: {np.percentile(taken, 95):.2f} ms)"


def per_image(store: Store, at: list[int]) -> str:
    """Time of an image's latents."""
    images = iter([at[0], *at])
    return median_ms(lambda: store.latents(next(images)), len(at))


def without_own_reader(store: Store) -> Store:
    """The store, read through zarr as one of other codecs would be."""
    store._sharded.update(dict.fromkeys(store.resolutions))
    return store


def rate(images: int, batches: Iterator[Any]) -> str:
    """Images a second."""
    started = time.perf_counter()
    for _ in batches:
        pass
    return f"{images / (time.perf_counter() - started):,.0f} images/s"


def slices(store: Store) -> Iterator[Any]:
    for first in range(0, len(store), 1024):
        yield store.latents(slice(first, first + 1024))


def epoch(path: Path, workers: int, *, whole: bool) -> Iterator[Any]:
    """Batches of a shuffled epoch. Starting the worker processes is counted."""
    dataset = LatentDataset(path)
    sampler = RowGroupSampler(dataset, seed=0)
    if whole:
        batches = BatchSampler(sampler, BATCH, drop_last=False)
        return iter(DataLoader(dataset, batch_size=None, sampler=batches, num_workers=workers))
    return iter(DataLoader(dataset, batch_size=BATCH, sampler=sampler, num_workers=workers))


if __name__ == "__main__":
    main()
