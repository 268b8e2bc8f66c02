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
from typing import Literal

import google_crc32c
import numcodecs
import numpy as np
from zarr.codecs import BloscCodec

from ..errors import UsageError
from .quantiser import MAX_CODE


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


def shard_object(numbers: np.ndarray, chunk: int) -> bytes:
    """What zarr writes for a whole shard [images, columns, ...] of chunks of `chunk` images, in a fifth of the time."""
    # The chunks one after the other, then offset and length of each, then the checksum of these.
    chunks = [_chunk_object(numbers[first : first + chunk]) for first in range(0, len(numbers), chunk)]
    lengths = np.array([len(part) for part in chunks])
    index = np.stack([np.cumsum(lengths) - lengths, lengths], axis=1).astype("<u8").tobytes()
    return b"".join([*chunks, index, _checksum(index)])


def vector_object(values: np.ndarray, length: int, fill_value: float) -> bytes:
    """What zarr writes for a chunk, of `length` elements, of an array that has a number per image."""
    missing = np.full(length - len(values), fill_value, values.dtype)  # there are none beyond the last image
    chunk = np.concatenate([values, missing])
    data = bytes(numcodecs.Zstd(VECTOR_LEVEL).encode(chunk.astype(chunk.dtype.newbyteorder("<"))))
    return data + _checksum(data)


def marker_object(digest: int) -> bytes:
    """What zarr writes for an element of `committed`."""
    data = digest.to_bytes(4, "little")
    return data + _checksum(data)


def marked_digest(content: bytes) -> int:
    """The digest in an object of `committed`; 0 if a power cut has torn it: the row group was not committed."""
    digest = int.from_bytes(content[:4], "little")
    return digest if content == marker_object(digest) else 0


def compressed_bytes(chunk: np.ndarray) -> int:
    """Bytes of one latent chunk [images, columns, ...] in a store, without its entry in the shard's index."""
    return len(_chunk_object(chunk))


def _chunk_object(chunk: np.ndarray) -> bytes:
    shuffles = {"shuffle": numcodecs.Blosc.SHUFFLE, "bitshuffle": numcodecs.Blosc.BITSHUFFLE}
    blosc = numcodecs.Blosc("zstd", _LEVEL, shuffles[_shuffle(chunk.dtype.name)])
    ordered = chunk.transpose(memory_order(chunk.ndim) or range(chunk.ndim))
    data = bytes(blosc.encode(np.ascontiguousarray(ordered, ordered.dtype.newbyteorder("<"))))
    return data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(4, "little")


def memory_order(axes: int) -> tuple[int, ...]:
    """Order of a chunk's axes before it is compressed; empty if it stays as it is.

    A variate's numbers are alike in all images, so they go channel by channel. Single latent dimensions are most like
    their neighbours in the same image: as they are they take a fifth to a third less.
    """
    return (1, 0, 2, 3) if axes == 4 else ()


_LEVEL = 7
VECTOR_LEVEL = 9  # of arrays with a number per image, which are small


def compressor(dtype: str) -> BloscCodec:
    """Compresses the chunks of a latent array of this type."""
    return BloscCodec(cname="zstd", clevel=_LEVEL, shuffle=_shuffle(dtype), typesize=np.dtype(dtype).itemsize)


def _shuffle(dtype: str) -> Literal["shuffle", "bitshuffle"]:
    # The high bits of a small code all equal its sign: bit shuffling turns them into copies of one plane.
    return "bitshuffle" if np.issubdtype(dtype, np.integer) else "shuffle"


def unstorable(stored: np.ndarray) -> np.ndarray:
    """Whether each image, of [image, columns, ...], holds a number no latent can have: NaN, infinity, a fill value."""
    wrong = np.abs(stored.astype(np.int32)) > MAX_CODE if stored.dtype.kind == "i" else ~np.isfinite(stored)
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
