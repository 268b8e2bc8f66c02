"""Bytes an image of a store's latents under several compressors and chunk lengths, and the time they take.

    python benchmarks/store_codecs.py quickstart/out.zarr

The numbers are compressed as a store does it, channels first, one chunk at a time; shard indices are not counted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numcodecs
import numpy as np
from conditions import conditions
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from hvae_codec import open_store
from hvae_codec.store.arrays import chunk_length

SHUFFLES = {
    "none": numcodecs.Blosc.NOSHUFFLE,
    "bytes": numcodecs.Blosc.SHUFFLE,
    "bits": numcodecs.Blosc.BITSHUFFLE,
}


@dataclass(frozen=True)
class Row:
    """One way to compress."""

    shuffle: str
    level: int
    chunk_kib: int
    bytes_per_image: float
    milliseconds_per_image: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--images", type=int, default=2048, help="images to compress, at most")
    arguments = parser.parse_args()
    store = open_store(arguments.store)
    arrays = list(store.stored(slice(0, arguments.images)).values())
    rows = [measure(arrays, s, lv, k) for k in (16, 64, 128, 256) for s in SHUFFLES for lv in (3, 7, 9)]
    raw = sum(array[0].nbytes for array in arrays)
    print(f"{conditions()}\npython benchmarks/store_codecs.py {arguments.store}")
    print(f"{len(arrays[0]):,} images, {raw:,} bytes each as {store.codec.dtype}")
    Console().print(as_table(sorted(rows, key=lambda row: row.bytes_per_image)))


def measure(arrays: list[NDArray], shuffle: str, level: int, chunk_kib: int) -> Row:
    images = len(arrays[0])
    codec = numcodecs.Blosc("zstd", level, SHUFFLES[shuffle])
    started = time.perf_counter()
    size = sum(len(codec.encode(chunk)) for array in arrays for chunk in chunks(array, chunk_kib * 1024))
    return Row(shuffle, level, chunk_kib, size / images, 1000 * (time.perf_counter() - started) / images)


def chunks(array: NDArray, chunk_bytes: int) -> Iterator[NDArray]:
    length = chunk_length(256, chunk_bytes, array[0].nbytes)
    for first in range(0, len(array), length):
        yield np.ascontiguousarray(array[first : first + length].swapaxes(0, 1))


def as_table(rows: list[Row]) -> Table:
    table = Table()
    for heading in ("shuffle", "zstd level", "chunk, KiB", "bytes an image", "ms an image"):
        table.add_column(heading, justify="right")
    for row in rows:
        size, milliseconds = f"{row.bytes_per_image:.1f}", f"{row.milliseconds_per_image:.3f}"
        table.add_row(row.shuffle, str(row.level), str(row.chunk_kib), size, milliseconds)
    return table


if __name__ == "__main__":
    main()
