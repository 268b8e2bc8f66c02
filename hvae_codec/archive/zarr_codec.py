"""The codec as zarr knows it: a serializer, which has an array's numbers in and bytes out.

    zarr.create_array(..., serializer=ArchiveCodec(), filters=(), compressors=())

Wherever this package is installed zarr finds it by its entry point, and so does xarray; elsewhere zarr raises an error
that names the codec, and with it the package: `hvae-codec.archive`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.abc.codec import ArrayBytesCodec

from ..errors import StoreError
from .chunk import VERSION, check_packable, pack, unpack

if TYPE_CHECKING:
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer
    from zarr.core.common import JSON

NAME = "hvae-codec.archive"
"""In the metadata of arrays."""


@dataclass(frozen=True)
class ArchiveCodec(ArrayBytesCodec):
    """Packs chunks of int8, int16 or int32 [images, variates, y, x] or fewer axes, each by itself."""

    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> ArchiveCodec:
        """Read an array's metadata; `StoreError` if another version of the codec wrote it."""
        configuration = data.get("configuration") or {}
        version = configuration.get("version") if isinstance(configuration, dict) else configuration
        if data.get("name") != NAME or version != VERSION:
            raise StoreError(f"the codec {data.get('name')} has version {version}, not {VERSION}; update hvae-codec")
        return cls()

    def to_dict(self) -> dict[str, JSON]:
        """The codec in an array's metadata."""
        return {"name": NAME, "configuration": {"version": VERSION}}

    def evolve_from_array_spec(self, array_spec: ArraySpec) -> ArchiveCodec:
        """Raise `UsageError` on other types within shards too, of which not every zarr asks `validate`."""
        check_packable((1,), array_spec.dtype.to_native_dtype())
        return self

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:
        """Raise `UsageError` if an array of this shape and type has chunks that cannot be packed."""
        check_packable(getattr(chunk_grid, "chunk_shape", shape), dtype.to_native_dtype())

    def compute_encoded_size(self, input_byte_length: int, _chunk_spec: ArraySpec) -> int:
        """Refuse: how long a chunk gets shows only when it is packed."""
        raise NotImplementedError

    def _encode_sync(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        return chunk_spec.prototype.buffer.from_bytes(pack(np.asarray(chunk_array.as_numpy_array())))

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        numbers = unpack(chunk_bytes.to_bytes(), chunk_spec.shape, chunk_spec.dtype.to_native_dtype())
        return chunk_spec.prototype.nd_buffer.from_numpy_array(numbers)

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        return await asyncio.to_thread(self._encode_sync, chunk_data, chunk_spec)

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        return await asyncio.to_thread(self._decode_sync, chunk_data, chunk_spec)
