"""What packs the chunks of latent arrays, and unpacks them: a store's packing, by name.

    blosc     transpose, bytes, blosc (zstd after a shuffle), crc32c     format versions 1 to 4
    zstd      of int8 transpose, bytes, zstd, crc32c; of int16 as blosc  version 5
    archive   the archive codec, which has a checksum of its own         version 5

    chunk [images, columns, ...] ── Compressor.pack ──> the bytes that zarr writes ── unpacker_of ──> chunk

`Compressor.codecs` says the same to zarr. Unpacking goes by what an array's metadata say, not by the packing: another
order of axes or another level is read as well, and all else is left to zarr.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numcodecs
import numpy as np
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, TransposeCodec, ZstdCodec

from ..archive.chunk import check_kernel, pack, unpack
from ..archive.zarr_codec import ArchiveCodec
from ..errors import StoreError, UsageError
from .checksums import with_checksum, without_checksum

BLOSC, ZSTD, ARCHIVE = "blosc", "zstd", "archive"
Unpack = Callable[[bytes], NDArray[Any]]
"""The bytes of a chunk to the chunk, [images, columns, ...]; raises `ValueError` or `StoreError` on damage."""

_BLOSC_LEVEL = 7
_ZSTD_LEVEL = 19
"""Of variates in int8, bytes and ms per image: level 12: 223.2, 0.14; 15: 207.3, 0.28; 19: 204.2, 0.83; 22: 203.8, 1.17
(`benchmarks/store_codecs.py`)."""


class Compressor(ABC):
    """Packs chunks of latent arrays."""

    integers_only = False  # whether it packs codes alone

    @abstractmethod
    def codecs(self, dtype: str, axes: int) -> dict[str, Any]:
        """`filters`, `serializer` and `compressors`, for zarr, of an array of this type and number of axes."""

    @abstractmethod
    def pack(self, chunk: NDArray[Any]) -> bytes:
        """What zarr writes for a chunk [images, columns, ...]."""

    def check(self) -> None:  # noqa: B027 - most have nothing to check
        """Raise `StoreError` if it cannot work here."""


class _Transposed(Compressor):
    """A compressor of bytes, after the axes of the chunk were put in order."""

    def codecs(self, dtype: str, axes: int) -> dict[str, Any]:
        order = _memory_order(axes)
        filters = [TransposeCodec(order=order)] if order else []
        return {"filters": filters, "serializer": "auto", "compressors": [self._zarr_codec(dtype), Crc32cCodec()]}

    def pack(self, chunk: NDArray[Any]) -> bytes:
        ordered = chunk.transpose(_memory_order(chunk.ndim) or range(chunk.ndim))
        data = np.ascontiguousarray(ordered, ordered.dtype.newbyteorder("<"))
        return with_checksum(bytes(self._codec(chunk.dtype.name).encode(data)))

    @abstractmethod
    def _zarr_codec(self, dtype: str) -> Any: ...

    @abstractmethod
    def _codec(self, dtype: str) -> Any: ...


class _Blosc(_Transposed):
    """Zstd after a shuffle: of bits for codes, of bytes for floats."""

    def _zarr_codec(self, dtype: str) -> Any:
        size = np.dtype(dtype).itemsize
        return BloscCodec(cname="zstd", clevel=_BLOSC_LEVEL, shuffle=_shuffle(dtype), typesize=size)

    def _codec(self, dtype: str) -> Any:
        shuffles = {"shuffle": numcodecs.Blosc.SHUFFLE, "bitshuffle": numcodecs.Blosc.BITSHUFFLE}
        return numcodecs.Blosc("zstd", _BLOSC_LEVEL, shuffles[_shuffle(dtype)])


class _Zstd(_Blosc):
    """Zstd of int8 codes as they are; int16 ones are left to blosc.

    Plain zstd takes a tenth less than blosc for int8, and is read in half the time; for int16, 2 to 3% more.
    """

    integers_only = True

    def _zarr_codec(self, dtype: str) -> Any:
        return ZstdCodec(level=_ZSTD_LEVEL) if dtype == "int8" else super()._zarr_codec(dtype)

    def _codec(self, dtype: str) -> Any:
        return numcodecs.Zstd(_ZSTD_LEVEL) if dtype == "int8" else super()._codec(dtype)


class _Archive(Compressor):
    """Context mixing, see `archive/`."""

    integers_only = True

    def codecs(self, dtype: str, axes: int) -> dict[str, Any]:
        return {"filters": [], "serializer": ArchiveCodec(), "compressors": []}

    def pack(self, chunk: NDArray[Any]) -> bytes:
        return pack(chunk)

    def check(self) -> None:
        check_kernel()


COMPRESSORS: Mapping[str, Compressor] = {BLOSC: _Blosc(), ZSTD: _Zstd(), ARCHIVE: _Archive()}


def compressor(packing: str) -> Compressor:
    """The compressor of a packing; `StoreError` if there is none of this name.

    >>> len(compressor("archive").pack(np.zeros((256, 5, 16, 16), "int8")))
    13
    """
    if packing not in COMPRESSORS:
        raise StoreError(f"there is no packing {packing!r}; choose {', '.join(COMPRESSORS)}")
    return COMPRESSORS[packing]


def packing_of(dtype: str, wish: str) -> str:
    """The packing of a store whose codec gives numbers of `dtype`, if `wish` is that of codes.

    Floats have `blosc`. Raises `UsageError` if there is no such packing, or if floats are to be archived.

    >>> packing_of("int16", "zstd"), packing_of("float16", "zstd")
    ('zstd', 'blosc')
    """
    if wish not in COMPRESSORS:
        raise UsageError(f"packing is {wish!r}; give {', '.join(COMPRESSORS)}")
    if np.issubdtype(dtype, np.integer):
        return wish
    if wish == ARCHIVE:
        raise UsageError(f"the packing archive is for integer codes, not {dtype}; give the int codec, or zstd")
    return BLOSC


def _memory_order(axes: int) -> tuple[int, ...]:
    """Order of a chunk's axes before it is compressed; empty if it stays as it is.

    A variate's numbers are alike in all images, so they go channel by channel. Single latent dimensions are most like
    their neighbours in the same image: as they are they take a fifth to a third less.
    """
    return (1, 0, 2, 3) if axes == 4 else ()


def _shuffle(dtype: str) -> Literal["shuffle", "bitshuffle"]:
    # The high bits of a small code all equal its sign: bit shuffling turns them into copies of one plane.
    return "bitshuffle" if np.issubdtype(dtype, np.integer) else "shuffle"


def unpacker_of(codecs: Sequence[Mapping[str, Any]], shape: tuple[int, ...], dtype: np.dtype) -> Unpack | None:
    """What unpacks chunks of `shape` that zarr's `codecs` have packed; None if they are others than a store has."""
    if [(codec["name"], codec.get("configuration")) for codec in codecs] == _ARCHIVE_CODECS:
        return lambda data: unpack(data, shape, dtype)
    known = {codec["name"]: codec.get("configuration") or {} for codec in codecs}
    order = known.get("transpose", {}).get("order", range(len(shape)))
    names = [name for name in known if name != "transpose"]
    is_ours = len(names) == 3 and names[0] == "bytes" and names[1] in _DECODERS and names[2] == "crc32c"
    if not is_ours or len(known) != len(codecs) or [*known].index("bytes") > 1:
        return None
    if known["bytes"].get("endian", "little") != "little":
        return None
    return _transposed_unpacker(_DECODERS[names[1]], shape, tuple(order), dtype)


def _transposed_unpacker(
    decoder: numcodecs.abc.Codec, shape: tuple[int, ...], order: tuple[int, ...], dtype: np.dtype
) -> Unpack:
    packed_shape, axes = [shape[axis] for axis in order], np.argsort(order).tolist()
    little = dtype.newbyteorder("<")

    def unpack_ordered(data: bytes) -> NDArray[Any]:
        content = decoder.decode(without_checksum(data))
        return np.frombuffer(content, little).reshape(packed_shape).transpose(axes)

    return unpack_ordered


_ARCHIVE_CODECS = [(codec["name"], codec["configuration"]) for codec in [ArchiveCodec().to_dict()]]
# Their settings are for writing: compressed bytes say how to read them.
_DECODERS = {"blosc": numcodecs.Blosc(), "zstd": numcodecs.Zstd()}
