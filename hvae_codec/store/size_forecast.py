"""Estimates what a store will take on disk, from the latents of some of its images.

sample ── chunks as the store has them, compressed ──> bytes per image     tables: made in memory, counted exactly
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from .arrays import compressed_bytes, vector_object
from .create import objects_of
from .schema import CHECKSUM
from .spec import StoreSpec

_INDEX_ENTRY, _INDEX_CHECKSUM, _MARKER, _PER_IMAGE = 16, 4, 8, 4
"""Bytes of a chunk in a shard's index, of that index's checksum, of a row group's digest, of a float32."""


_LEAST_POWER = 0.1
"""Of images in a chunk, with which its bytes grow: a smaller one comes from chance in few images."""


def latent_bytes(spec: StoreSpec, sample: Mapping[int, NDArray[np.generic]], images: int) -> int:
    """Estimate the bytes of the latents of `images` images.

    `sample` has the stored numbers of some, by resolution, [n, ...], in the types of their arrays.
    Chunks compress better the more images they hold. Of larger ones than the sample, the bytes are told from chunks
    of the whole sample, of its halves and of its quarters.
    """
    per_image, shard = 0.0, 0
    for resolution in spec.resolutions:
        length = spec.schema[f"z{resolution}"].chunks[0]
        per_image += _chunk_bytes(sample[resolution], length, spec.packing) / length
        shard += _INDEX_ENTRY * (spec.row_group_size // length) + _INDEX_CHECKSUM
    return round(images * (per_image + shard / spec.row_group_size))


def table_bytes(spec: StoreSpec) -> int:
    """Count the bytes of all else: names, labels, steps, metadata, the model; per-image numbers as uncompressed.

    Of records, checksums are not known before the images are read; as much as they take is taken by random numbers.
    """
    tables = sum(map(len, objects_of(spec).values()))
    row_groups = spec.row_groups
    per_image = _PER_IMAGE * len(spec.per_image) + (_checksum_bytes(spec) if spec.has_records else 0.0)
    return tables + _MARKER * len(row_groups) + round(per_image * row_groups.images)


def _checksum_bytes(spec: StoreSpec) -> float:
    """Bytes per image of a chunk of checksums, which holds a row group."""
    images, schema = min(spec.row_group_size, spec.row_groups.images), spec.schema[CHECKSUM]
    numbers = np.random.default_rng(0).integers(0, 2**32, images)
    return len(vector_object(numbers, schema.chunks[0], schema.fill_value)) / images


def _chunk_bytes(numbers: NDArray[np.generic], length: int, packing: str) -> float:
    """Estimate the bytes of a chunk of `length` images from `numbers`, [images, ...]."""
    count = len(numbers)
    if length <= count:
        return _mean_bytes(numbers, length, packing)
    whole, half, quarter = (_mean_bytes(numbers, max(count // parts, 1), packing) for parts in (1, 2, 4))
    if count < 4:
        return whole * length / count
    # Bytes grow as a + b · images^power, with a power of at most 1.
    growth = max(whole - half, 0.0)
    power = min(max(math.log2(max(growth, 1.0) / max(half - quarter, 1.0)), _LEAST_POWER), 1.0)
    return whole + growth * ((length / count) ** power - 1) / (1 - 0.5**power)


def _mean_bytes(numbers: NDArray[np.generic], length: int, packing: str) -> float:
    """Compress `numbers` in as many whole chunks of `length` images as they give; bytes of one."""
    firsts = range(0, len(numbers) - length + 1, length)
    return sum(compressed_bytes(numbers[first : first + length], packing) for first in firsts) / len(firsts)
