"""The bytes of a store's arrays: shards and chunks as zarr writes them, the digests that vouch for row groups.

A row group is exactly one shard in each latent array, and is written whole by one writer:

    images        0 ... 255 | 256 ... 511 | 512 ...
    z1            shard 0   | shard 1     | shard 2      [image, columns ...]
    z16           shard 0   | shard 1     | shard 2
    committed     digest 0  | digest 1    | digest 2     0 = not written
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numcodecs
import numpy as np

from ..errors import UsageError
from .checksums import with_checksum
from .compressors import compressor

VECTOR_LEVEL = 9  # of arrays with a number per image, which are small


def shard_key(row_group: int, item: tuple[int, ...]) -> str:
    """The shard of a row group, below a latent array whose images have the shape `item`.

    >>> shard_key(2, (5, 8, 8))
    'c/2/0/0/0'
    """
    return "/".join(["c", str(row_group), *("0" for _ in item)])


def chunk_length(row_group_size: int, chunk_bytes: int, image_bytes: int) -> int:
    """Images in a chunk: the largest divisor of `row_group_size` whose images take at most `chunk_bytes`; at least 1.

    >>> [chunk_length(256, 65536, image_bytes) for image_bytes in (10, 256, 1536, 10**6)]
    [256, 256, 32, 1]
    """
    most = min(row_group_size, max(1, chunk_bytes // image_bytes))
    return next(n for n in range(most, 0, -1) if row_group_size % n == 0)


def check_pieces(row_group_size: int, most: int, pieces: str) -> None:
    """Raise `UsageError` if a row group can only be cut into `pieces` of far fewer images than `most`, as a prime can.

    >>> check_pieces(1000, 64, "chunks")
    >>> check_pieces(1009, 64, "chunks")
    Traceback (most recent call last):
    hvae_codec.errors.UsageError: row groups of 1,009 images have chunks of 1, where 64 would do; give --shard 1024
    """
    most = min(most, row_group_size)
    length = chunk_length(row_group_size, most, 1)
    if 8 * length < most:
        unit = 1 << (most.bit_length() - 1)  # a power of two has many divisors
        better = max(1, round(row_group_size / unit)) * unit
        raise UsageError(
            f"row groups of {row_group_size:,} images have {pieces} of {length:,}, where {most:,} would do; give "
            f"--shard {better}"
        )


def shard_object(numbers: np.ndarray, chunk: int, packing: str) -> bytes:
    """What zarr writes for a whole shard [images, columns, ...] of chunks of `chunk` images, in a fifth of the time."""
    # The chunks one after the other, then offset and length of each, then the checksum of these.
    pack = compressor(packing).pack
    chunks = [pack(numbers[first : first + chunk]) for first in range(0, len(numbers), chunk)]
    lengths = np.array([len(part) for part in chunks])
    index = np.stack([np.cumsum(lengths) - lengths, lengths], axis=1).astype("<u8").tobytes()
    return b"".join([*chunks, with_checksum(index)])


def vector_object(values: np.ndarray, length: int, fill_value: float) -> bytes:
    """What zarr writes for a chunk, of `length` elements, of an array that has a number per image."""
    missing = np.full(length - len(values), fill_value, values.dtype)  # there are none beyond the last image
    chunk = np.concatenate([values, missing])
    return with_checksum(bytes(numcodecs.Zstd(VECTOR_LEVEL).encode(chunk.astype(chunk.dtype.newbyteorder("<")))))


def marker_object(digest: int) -> bytes:
    """What zarr writes for an element of `committed`."""
    return with_checksum(digest.to_bytes(4, "little"))


def marked_digest(content: bytes) -> int:
    """The digest in an object of `committed`; 0 if a power cut has torn it: the row group was not committed."""
    digest = int.from_bytes(content[:4], "little")
    return digest if content == marker_object(digest) else 0


def compressed_bytes(chunk: np.ndarray, packing: str) -> int:
    """Bytes of one latent chunk [images, columns, ...] in a store, without its entry in the shard's index."""
    return len(compressor(packing).pack(chunk))


def unstorable(stored: np.ndarray) -> np.ndarray:
    """Whether each image, of [image, columns, ...], holds a number no latent can have: NaN, infinity, a fill value."""
    wrong = stored == np.iinfo(stored.dtype).min if stored.dtype.kind == "i" else ~np.isfinite(stored)
    return np.asarray(wrong.any(axis=tuple(range(1, wrong.ndim))))


def row_group_digest(stored: Sequence[np.ndarray]) -> int:
    """CRC-32 over the little-endian bytes of a row group's arrays, by ascending resolution; never 0.

    >>> row_group_digest([np.zeros((1, 1, 1, 1), "int16")])
    1104745215
    """
    digest = 0
    for array in stored:
        digest = zlib.crc32(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data, digest)
    return digest or 1
