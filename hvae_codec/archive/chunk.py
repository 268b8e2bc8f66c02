"""A chunk of integer latents to bytes and back.

    version   uint8     1
    coded     uint32    images whose numbers follow; all later ones hold `rest` alone
    rest      int32
    numbers   ...       of the images coded, by the context-mixing coder; none if `coded` is 0
    checksum  uint32    CRC-32C of all bytes before it, then of the chunk's type and shape

All are little-endian. A chunk stands by itself: what the coder learns, it learns anew in each.

The coder (`kernel/`) is C, not numba: 36 kB against 64 MB to download and 195 MB installed, no seconds of compiling at
the first call, no upper limit on the versions of Python and numpy. One built file serves all versions of Python from
3.11 on (stable ABI). It computes with integers alone, so bytes and numbers are the same on every machine.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import StoreError, UsageError

VERSION = 1
_HEADER = struct.Struct("<BIi")
_CHECKSUM = struct.Struct("<I")
_MOST_NUMBERS = 2**31 - 1  # in a chunk
DTYPES = ("int8", "int16", "int32")


def pack(numbers: NDArray[np.signedinteger[Any]]) -> bytes:
    """The bytes of one chunk, int8, int16 or int32 [images, variates, height, width] or fewer axes.

    Raises `UsageError` if it has another type or shape.

    >>> len(pack(np.zeros((256, 5, 16, 16), "int8")))
    13
    """
    check_packable(numbers.shape, numbers.dtype)
    coded = _images_before_rest(numbers)
    rest = int(numbers.flat[-1]) if numbers.size and coded < len(numbers) else 0
    data = _HEADER.pack(VERSION, coded, rest) + _coded(numbers[:coded])
    return data + _CHECKSUM.pack(_checksum(data, numbers.shape, numbers.dtype))


def unpack(data: bytes | memoryview, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
    """The chunk of this shape and type that `pack` made `data` from.

    Raises `StoreError` if `data` are damaged, or belong to another shape or type. However damaged, they take no more
    memory than a sound chunk of this shape, and time that its numbers bound.
    """
    shape, dtype = tuple(shape), np.dtype(dtype)
    check_packable(shape, dtype)
    coded, rest, payload = _parsed(memoryview(data), shape, dtype)
    numbers = np.full(shape, rest, dtype)
    if coded and numbers.size:
        numbers[:coded] = _decoded(payload, (coded, *shape[1:]), dtype)
    return numbers


def check_packable(shape: Sequence[int], dtype: np.dtype) -> None:
    """Raise `UsageError` if no chunk of this shape and type can be packed."""
    if dtype.name not in DTYPES:
        raise UsageError(f"the archive codec packs int8, int16 and int32, not {dtype.name}; choose another codec")
    if not 1 <= len(shape) <= 4:
        raise UsageError(f"the archive codec packs [images, variates, y, x] or fewer axes, not {len(shape)} axes")
    if np.prod(shape, dtype=np.float64) > _MOST_NUMBERS:
        raise UsageError(f"a chunk of {list(shape)} has more than 2^31 - 1 numbers; make the array's chunks smaller")


def _images_before_rest(numbers: NDArray[Any]) -> int:
    """How many images come before those at the end that hold one and the same number."""
    if not numbers.size:
        return 0
    flat = numbers.reshape(len(numbers), -1)
    others = np.flatnonzero((flat != flat[-1, -1]).any(axis=1))
    return int(others[-1]) + 1 if len(others) else 0


def _checksum(data: bytes | memoryview, shape: Sequence[int], dtype: np.dtype) -> int:
    about = struct.pack(f"<{1 + len(shape)}I", dtype.itemsize, *shape)
    return int(google_crc32c.extend(google_crc32c.value(bytes(data)), about))


def _parsed(data: memoryview, shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, int, memoryview]:
    """Images coded, the number that the rest holds, and the coder's bytes."""
    if len(data) < _HEADER.size + _CHECKSUM.size:
        raise StoreError(f"a chunk of the archive codec has {len(data)} bytes, fewer than its header; repair the store")
    content, (checksum,) = data[: -_CHECKSUM.size], _CHECKSUM.unpack(data[-_CHECKSUM.size :])
    if checksum != _checksum(content, shape, dtype):
        raise StoreError("a chunk of the archive codec does not match its checksum; repair the store")
    version, coded, rest = _HEADER.unpack(content[: _HEADER.size])
    if version != VERSION:
        raise StoreError(f"a chunk of the archive codec has version {version}, not {VERSION}; update hvae-codec")
    if coded > shape[0] or not np.iinfo(dtype).min <= rest <= np.iinfo(dtype).max:
        raise StoreError(f"a chunk of the archive codec has a header of {coded} images and {rest}; repair the store")
    return coded, rest, content[_HEADER.size :]


def _planes(shape: Sequence[int]) -> tuple[int, int, int, int]:
    """Images, variates, height and width, as the coder sees a chunk.

    Single latent dimensions are alike from image to image and along their order: they are rows of one plane.
    """
    if len(shape) < 3:
        height, width = (1, *shape)[-2:]
        return 1, 1, height, width
    height, width = (1, *shape[2:])[-2:]
    return shape[0], shape[1], height, width


def _coded(numbers: NDArray[Any]) -> bytes:
    if not numbers.size:
        return b""
    by_plane = np.array(numbers.reshape(_planes(numbers.shape)).swapaxes(0, 1), np.int32, order="C")
    return bytes(_kernel().encode(by_plane, by_plane.shape, 8 * numbers.dtype.itemsize))


def _decoded(payload: memoryview, shape: tuple[int, ...], dtype: np.dtype) -> NDArray[Any]:
    images, variates, *sides = _planes(shape)
    by_plane = np.zeros((variates, images, *sides), np.int32)
    if not _kernel().decode(payload, by_plane, by_plane.shape, 8 * dtype.itemsize):
        raise StoreError(f"a chunk of the archive codec does not hold {list(shape)} numbers; repair the store")
    return by_plane.swapaxes(0, 1).reshape(shape).astype(dtype)


def check_kernel() -> None:
    """Raise `StoreError` if the coder was not built when this package was installed."""
    _kernel()


def _kernel() -> ModuleType:
    try:
        from . import _kernel
    except ImportError as error:
        raise StoreError(
            "the archive codec's compiled part is missing; install hvae-codec from a wheel, or again with a C compiler"
        ) from error
    return _kernel
