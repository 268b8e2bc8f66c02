"""What of a store its row groups depend on, without names and other tables of images, for whoever writes one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ..errors import UsageError
from .arrays import check_pieces
from .columns import Columns
from .compressors import BLOSC
from .quantiser import Codec
from .rowgroups import RowGroups
from .schema import CHECKSUM, ArraySchema, store_schema

MAX_ROW_GROUP, MAX_CHUNK = 2**20, 2**30
"""Images in a row group, which is held in memory, and bytes of a chunk, of which compressors take less than 2 GiB."""


@dataclass(frozen=True, kw_only=True)
class StoreLayout:
    """The arrays of a store, and how they are cut into row groups, shards and chunks."""

    columns: Columns  # what is kept of each latent resolution
    codec: Codec  # how z became the stored numbers
    images: int
    row_group_size: int  # images in each row group but the last
    chunk_bytes: int  # uncompressed bytes that a chunk of two images or more does not exceed
    per_image: tuple[str, ...] = ()  # further arrays, one float32 per image, written with each row group
    weights: int = 0  # bytes that the store carries of its model
    has_records: bool = False  # whether each image's split, the bytes of its file and their checksum are kept
    packing: str = BLOSC  # how chunks of latents are packed, see `compressors`
    dtypes: Mapping[int, str] = field(default_factory=dict)  # of latents, by resolution; the codec's if there is none

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Latent resolutions that something is kept of, ascending."""
        return self.columns.resolutions

    @property
    def row_groups(self) -> RowGroups:
        """Which images are in which row group."""
        return RowGroups(self.images, self.row_group_size)

    @property
    def of_row_groups(self) -> tuple[str, ...]:
        """Per-image arrays that are written with each row group: `per_image`, and the checksums if there are some."""
        return (*self.per_image, CHECKSUM) if self.has_records else self.per_image

    @cached_property
    def schema(self) -> dict[str, ArraySchema]:
        """The arrays of the store by name."""
        return store_schema(
            self.columns,
            self.codec,
            self.row_groups,
            self.chunk_bytes,
            self.per_image,
            self.weights,
            has_records=self.has_records,
            packing=self.packing,
            dtypes=self.dtypes,
        )


def check_limit(name: str, option: str, value: int | None, most: int) -> None:
    """Raise `UsageError` if what is `name` in Python and `option` in a command is neither 1 to `most` nor None.

    >>> check_limit("chunk_bytes", "--chunk", 0, MAX_CHUNK)
    Traceback (most recent call last):
    hvae_codec.errors.UsageError: chunk_bytes (--chunk) is 0; give 1 to 1073741824
    """
    if value is not None and not 1 <= value <= most:
        raise UsageError(f"{name} ({option}) is {value}; give 1 to {most}")


def check_chunks(layout: StoreLayout) -> None:
    """Raise `UsageError` if row groups can only be cut into chunks that are far too small."""
    for array in (layout.schema[f"z{resolution}"] for resolution in layout.resolutions):
        image_bytes = math.prod(array.shape[1:]) * np.dtype(array.dtype).itemsize
        check_pieces(layout.row_group_size, layout.chunk_bytes // image_bytes, "chunks")
