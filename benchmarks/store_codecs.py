"""Bytes per image of a store's codes in each packing and chunk length, and how long writing and reading them takes.

    python benchmarks/store_codecs.py quickstart/out.zarr

The store is written again in each packing, in chunks of at most so many bytes, to a temporary folder: the bytes are
those of all shards, indices included. Reading is timed with nothing cached by this package: images at random, and all
in order. Then plain zstd is tried at other levels, chunk by chunk, without indices. Times are of this process's
processor, the median of `--repeats` turns in which all packings are read one after the other. Codes must fit in int8.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
from numpy.typing import NDArray
from results import print_table

from hvae_codec import Store, open_store
from hvae_codec.store.arrays import chunk_length
from hvae_codec.store.folder_writer import FolderStoreWriter

WAYS = (
    ("blosc", "int16", 128),
    ("zstd", "int8", 64),
    ("zstd", "int8", 128),
    ("zstd", "int8", 256),
    ("zstd", "int16", 128),
    ("archive", "int8", 64),
    ("archive", "int8", 128),
)
"""Packing, type of codes, and KiB of a chunk; the first is format version 4."""
LEVELS = (9, 12, 15, 17, 19, 22)
COLUMNS = (
    "packing",
    "codes",
    "chunk, KiB",
    "bytes/image",
    "",
    "packs, ms",
    "random image, ms",
    "",
    "in order, images/s",
)
LEVEL_COLUMNS = ("zstd level", "bytes/image", "packs, ms/image", "unpacks, ms/image")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, help="of --codec int")
    parser.add_argument("--reads", type=int, default=40, help="random images")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    numcodecs.blosc.use_threads = False
    old = open_store(options.store)
    with tempfile.TemporaryDirectory() as folder:
        stores = [rewritten(old, Path(folder) / f"{i}.zarr", *way) for i, way in enumerate(WAYS)]
        rows = list(measured(stores, options.reads, options.repeats))
    print_table(f"{options.store}: {len(old):,} images, {old.kept_dims:,} codes each", COLUMNS, rows)
    print_table("plain zstd of int8 in chunks of 128 KiB", LEVEL_COLUMNS, list(levels(old)))


def rewritten(old: Store, path: Path, packing: str, dtype: str, chunk_kib: int) -> tuple[Store, float]:
    """The codes of `old` as a store of its own, and the seconds per image that packing took."""
    about = {"packing": packing, "dtypes": dict.fromkeys(old.resolutions, dtype), "per_image": ()}
    spec = replace(old.spec(), **about, chunk_bytes=1024 * chunk_kib, model=replace(old.metadata.model, embedded=""))
    writer, seconds = FolderStoreWriter.create_or_resume(path, spec), 0.0
    for row_group in writer.pending():
        rows = slice(writer.rows(row_group).start, writer.rows(row_group).stop)
        stored, records = old.stored(rows), {name: old.per_image(name)[rows] for name in spec.of_row_groups}
        seconds += timed(lambda: writer.write(row_group, stored, records))  # noqa: B023 - called at once
    writer.publish()
    return open_store(path, cache_bytes=0), seconds / len(old)


def measured(stores: Sequence[tuple[Store, float]], reads: int, repeats: int) -> Iterator[list[str]]:
    """A row for each of `WAYS`."""
    images = len(stores[0][0])
    at = np.random.default_rng(0).integers(images, size=reads).tolist()
    times = np.zeros((repeats, len(stores), 2))
    for turn in times:
        for row, (store, _) in zip(turn, stores, strict=True):
            row[:] = timed(lambda: [store.latents(i) for i in at]) / reads, timed(lambda: store.latents(slice(None)))  # noqa: B023
    medians, sizes = np.median(times, axis=0), [latent_bytes(store) / images for store, _ in stores]
    for (packing, dtype, kib), (_, packs), size, (random, order) in zip(WAYS, stores, sizes, medians, strict=True):
        ratios = f"{size / sizes[0]:.3f}", f"{random / medians[0, 0]:.2f}"
        yield [
            packing,
            dtype,
            str(kib),
            f"{size:.1f}",
            ratios[0],
            f"{1000 * packs:.3f}",
            f"{1000 * random:.2f}",
            ratios[1],
            f"{images / order:,.0f}",
        ]


def latent_bytes(store: Store) -> int:
    """Bytes of all shards."""
    return sum(size for key, size in store.path.files() if key.startswith("z") and "/c/" in key)


def levels(store: Store) -> Iterator[list[str]]:
    """A row for each of `LEVELS`."""
    chunks = [part for array in store.stored(slice(None)).values() for part in split(array.astype("int8"))]
    for level in LEVELS:
        codec, packed = numcodecs.Zstd(level), []
        packs = timed(lambda: packed.extend(codec.encode(chunk) for chunk in chunks))  # noqa: B023
        unpacks = timed(lambda: [codec.decode(data) for data in packed])  # noqa: B023
        figures = (sum(map(len, packed)), 1000 * packs, 1000 * unpacks)
        size, *times = (figure / len(store) for figure in figures)
        yield [str(level), f"{size:.1f}", *(f"{ms:.4f}" for ms in times)]


def split(array: NDArray) -> Iterator[NDArray]:
    """Chunks, channels first."""
    length = chunk_length(256, 128 * 1024, array[0].nbytes)
    for first in range(0, len(array), length):
        part = array[first : first + length]
        yield np.ascontiguousarray(part.swapaxes(0, 1) if part.ndim == 4 else part)


def timed(work: Callable[[], Any]) -> float:
    """Seconds of this process's processor that `work` took."""
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    main()
