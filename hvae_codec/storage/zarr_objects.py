"""What zarr sees of a bucket: the same objects, of which those that were prefetched are not read again."""

from __future__ import annotations

from collections.abc import Iterable

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore, StorePath

from .connection import Bucket
from .translated import translated


def zarr_location(bucket: Bucket, key: str, *, read_only: bool) -> StorePath:
    """Where zarr finds what is below `key`."""
    return StorePath(ZarrObjects(bucket, read_only=read_only), key)


class ZarrObjects(ObjectStore):
    """zarr's view of a bucket: prefetched objects are not read again, and errors are ours."""

    def __init__(self, bucket: Bucket, *, read_only: bool = True) -> None:
        super().__init__(bucket.client, read_only=read_only)
        self.bucket = bucket

    def with_read_only(self, read_only: bool = False) -> ZarrObjects:
        """Of the same bucket."""
        return type(self)(self.bucket, read_only=read_only)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """An object or a range of it; None if there is none."""
        if byte_range is None and (content := self.bucket.prefetched.get(key)) is not None:
            return prototype.buffer.from_bytes(content)
        self.bucket.check_process()
        with translated(f"{self.bucket.url}/{key}"):
            return await super().get(key, prototype, byte_range)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Ranges of objects."""
        with translated(self.bucket.url):
            return await super().get_partial_values(prototype, key_ranges)

    async def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        with translated(f"{self.bucket.url}/{key}"):
            return await super().exists(key)

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object, at once whole."""
        self.bucket.prefetched.pop(key, None)
        with translated(f"{self.bucket.url}/{key}"):
            await super().set(key, value)

    async def delete(self, key: str) -> None:
        """Remove an object if it is there."""
        self.bucket.prefetched.pop(key, None)
        with translated(f"{self.bucket.url}/{key}"):
            await super().delete(key)
