"""Bits/dim of stores' integer codes under several codecs, and how fast each packs and unpacks them.

    for step in 1 1.5 2 3.46; do
        hvae-codec encode DATA step-$step.zarr --split val --keep 3% --step $step
    done
    python benchmarks/codecs.py step-*.zarr

Each array is packed chunk by chunk, as a store does it: `blosc` in chunks of at most 128 KiB (format version 4), all
others in chunks of `--chunk` images. int8 is taken for arrays whose codes fit. Each codec's result is unpacked and
compared. Shard indices, names and metadata are not counted. Times are of one thread, the least of `--repeats`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numcodecs
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray
from results import print_table

from hvae_codec import Store, open_store
from hvae_codec.archive.chunk import pack, unpack
from hvae_codec.config import CHUNK_BYTES
from hvae_codec.store.arrays import chunk_length

LEVELS = (3, 9, 15, 19, 22)
T = TypeVar("T")
COLUMNS = ("codec", "bits/dim", "bytes/image", "of blosc", "packs, images/s", "unpacks, images/s")


@dataclass(frozen=True)
class Codec:
    """One way to pack the chunks of an array."""

    name: str
    pack: Callable[[NDArray], bytes]
    unpack: Callable[[bytes, NDArray], NDArray]  # the second says shape and type
    narrow: bool = True  # int8 if the codes fit
    chunk_bytes: int = 0  # at most; 0 for chunks of a number of images


@dataclass(frozen=True)
class Row:
    """What a codec made of a store."""

    codec: str
    bytes_per_image: float
    pack_seconds: float  # per image
    unpack_seconds: float


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", type=Path, nargs="+", help="of --codec int")
    parser.add_argument("--images", type=int, default=2048, help="of each store, at most")
    parser.add_argument("--distinct", action="store_true", help="leave out images whose codes another one has")
    parser.add_argument("--chunk", type=int, default=256, help="images in a chunk, but of blosc")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    blosc.use_threads = False
    for path in options.stores:
        store = open_store(path)
        arrays = codes(store, options.images, distinct=options.distinct)
        rows = [measure(codec, arrays, options.chunk, options.repeats) for codec in codecs()]
        show(path, store.image_dims, arrays, rows)


def codes(store: Store, images: int, *, distinct: bool = False) -> list[NDArray]:
    """The codes of a store's first images, [images, ...] per resolution."""
    arrays = list(store.stored(slice(0, images)).values())
    if not distinct:
        return arrays
    flat = np.concatenate([array.reshape(len(array), -1) for array in arrays], axis=1)
    first = np.sort(np.unique(flat, axis=0, return_index=True)[1])
    return [array[first] for array in arrays]


def codecs() -> Iterator[Codec]:
    """What is compared; the first is what stores of format version 4 have."""
    bit_shuffle = numcodecs.Blosc("zstd", 7, numcodecs.Blosc.BITSHUFFLE)
    yield Codec("blosc zstd 7, int16", *by_plane(bit_shuffle), narrow=False, chunk_bytes=CHUNK_BYTES)
    for level in LEVELS:
        yield Codec(f"zstd {level}, int8", *by_plane(numcodecs.Zstd(level)))
    yield Codec("archive", pack, lambda data, like: unpack(data, like.shape, like.dtype))


def by_plane(codec: numcodecs.abc.Codec) -> tuple[Callable[[NDArray], bytes], Callable[[bytes, NDArray], NDArray]]:
    """Pack and unpack with channels first, as stores do; single latent dimensions stay image by image."""

    def pack_planes(chunk: NDArray) -> bytes:
        return bytes(codec.encode(np.ascontiguousarray(chunk.swapaxes(0, 1) if chunk.ndim == 4 else chunk)))

    def unpack_planes(data: bytes, like: NDArray) -> NDArray:
        ordered = like.swapaxes(0, 1) if like.ndim == 4 else like
        numbers = np.frombuffer(codec.decode(data), like.dtype).reshape(ordered.shape)
        return numbers.swapaxes(0, 1) if like.ndim == 4 else numbers

    return pack_planes, unpack_planes


def measure(codec: Codec, arrays: list[NDArray], chunk: int, repeats: int) -> Row:
    """Pack and unpack all arrays; `AssertionError` if other numbers come back."""
    chunks = [part for array in arrays for part in split(narrowed(array) if codec.narrow else array, codec, chunk)]
    pack_seconds, packed = least(lambda: [codec.pack(part) for part in chunks], repeats)
    seconds, unpacked = least(
        lambda: [codec.unpack(data, part) for data, part in zip(packed, chunks, strict=True)], repeats
    )
    assert all(np.array_equal(a, b) for a, b in zip(unpacked, chunks, strict=True)), codec.name
    images = len(arrays[0])
    return Row(codec.name, sum(map(len, packed)) / images, pack_seconds / images, seconds / images)


def narrowed(array: NDArray) -> NDArray:
    return array.astype("int8") if max(-array.min(), array.max() + 1) <= 128 else array


def split(array: NDArray, codec: Codec, chunk: int) -> Iterator[NDArray]:
    images = chunk_length(256, codec.chunk_bytes, array[0].nbytes) if codec.chunk_bytes else chunk
    for first in range(0, len(array), images):
        yield np.ascontiguousarray(array[first : first + images])


def least(work: Callable[[], T], repeats: int) -> tuple[float, T]:
    """The least seconds of this thread that `work` took, and what it returned."""
    seconds = []
    for _ in range(repeats):
        started = time.thread_time()
        result = work()
        seconds.append(time.thread_time() - started)
    return min(seconds), result


def show(path: Path, dims: int, arrays: list[NDArray], rows: Sequence[Row]) -> None:
    """Print the rows of a store whose images have `dims` colour values."""
    images, first = len(arrays[0]), rows[0]
    numbers = sum(array[0].size for array in arrays)
    cells = [
        [
            row.codec,
            f"{8 * row.bytes_per_image / dims:.3f}",
            f"{row.bytes_per_image:.1f}",
            f"{row.bytes_per_image / first.bytes_per_image:.2f}",
            f"{1 / row.pack_seconds:,.0f}",
            f"{1 / row.unpack_seconds:,.0f}",
        ]
        for row in rows
    ]
    print_table(f"{path}: {images:,} images, {numbers:,} codes each", COLUMNS, cells)


if __name__ == "__main__":
    main()
