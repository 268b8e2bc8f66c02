"""Columns of the stored arrays: what is kept of each latent resolution, whole variates or single latent dimensions.

    granularity   stored array             a column is                   its coordinates         noted in
    variate       z16 [image, c16, y, x]   a variate at all positions    group, variate          attribute `channels`
    position      z16 [image, d16]         one latent dimension          group, variate, y, x    array `dimension16`

All that differs between stores of the two granularities is here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError
from .metadata import StoreMetadata

Granularity = Literal["variate", "position"]
"""What is kept or pruned as one."""
Coordinates = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Columns:
    """What stands along the second axis of each `zR`, after the images: whole variates, or single latent dimensions."""

    coordinates: Mapping[int, Coordinates]  # by latent resolution, ascending; the first are latent group and variate

    granularity: ClassVar[Granularity]
    format_version: ClassVar[int]  # the lowest version of the format that has them

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Latent resolutions that have columns, ascending."""
        return tuple(sorted(resolution for resolution, table in self.coordinates.items() if len(table)))

    def count(self, resolution: int) -> int:
        """Columns of `zR`: one quantiser step each."""
        return len(self.coordinates[resolution])

    def agree_with(self, other: Columns) -> bool:
        """Whether both are the same columns."""
        same = self.granularity == other.granularity and self.resolutions == other.resolutions
        return same and all(np.array_equal(self.coordinates[r], other.coordinates[r]) for r in self.resolutions)

    def item(self, resolution: int) -> tuple[int, ...]:
        """Shape of one image in `zR`; the columns come first."""
        raise NotImplementedError

    def dimension_names(self, resolution: int) -> tuple[str, ...]:
        """Names of the axes of `item`."""
        raise NotImplementedError

    def spread(self, steps: NDArray[np.float32]) -> NDArray[np.float32]:
        """`steps` [columns] shaped to broadcast against stored numbers, of one image or of several."""
        raise NotImplementedError

    def attributes(self) -> dict[str, Any]:
        """Their part of the group's `hvae_codec` attribute."""
        raise NotImplementedError

    def tables(self) -> dict[str, Coordinates]:
        """Arrays `dimensionR` that note the coordinates, by name; none if the attribute does."""
        return {}


class VariateColumns(Columns):
    """Whole variates: coordinates [channels, 2] are latent group and variate. A few hundred, noted in the attribute."""

    granularity = "variate"
    format_version = 1

    def item(self, resolution: int) -> tuple[int, ...]:  # noqa: D102
        return (self.count(resolution), resolution, resolution)

    def dimension_names(self, resolution: int) -> tuple[str, ...]:  # noqa: D102
        return (f"c{resolution}", f"y{resolution}", f"x{resolution}")

    def spread(self, steps: NDArray[np.float32]) -> NDArray[np.float32]:  # noqa: D102
        return steps[:, None, None]

    def attributes(self) -> dict[str, Any]:
        """`channels`: resolution, as text, to the [group, variate] of each channel."""
        return {"channels": {str(r): self.coordinates[r].tolist() for r in self.resolutions}}

    @classmethod
    def read(cls, metadata: StoreMetadata, read_table: Callable[[str], NDArray]) -> VariateColumns:
        """The inverse of `attributes`."""
        channels = metadata.columns["channels"].items()
        return cls({int(r): np.array([(g, v) for g, v in c], np.int32).reshape(-1, 2) for r, c in channels})


class PositionColumns(Columns):
    """Single latent dimensions: coordinates [dimensions, 4] are latent group, variate, y and x, noted in an array."""

    granularity = "position"
    format_version = 2

    def item(self, resolution: int) -> tuple[int, ...]:  # noqa: D102
        return (self.count(resolution),)

    def dimension_names(self, resolution: int) -> tuple[str, ...]:  # noqa: D102
        return (f"d{resolution}",)

    def spread(self, steps: NDArray[np.float32]) -> NDArray[np.float32]:  # noqa: D102
        return steps

    def attributes(self) -> dict[str, Any]:
        """`granularity`, and `dimensions`: resolution, as text, to how many there are."""
        return {"granularity": "position", "dimensions": {str(r): self.count(r) for r in self.resolutions}}

    def tables(self) -> dict[str, Coordinates]:  # noqa: D102
        return {f"dimension{r}": self.coordinates[r] for r in self.resolutions}

    @classmethod
    def read(cls, metadata: StoreMetadata, read_table: Callable[[str], NDArray]) -> PositionColumns:
        """The inverse of `attributes` and `tables`; `StoreError` if the metadata name impossible numbers."""
        dimensions = metadata.columns["dimensions"]
        _check_counts(dimensions, metadata.mask)
        tables = {int(r): read_table(f"dimension{r}") for r in dimensions}
        return cls({r: _shaped(table, dimensions[str(r)], r) for r, table in tables.items()})


def _shaped(table: NDArray, count: int, resolution: int) -> Coordinates:
    """`table`, of `count` columns; zeros in the place of one that is not: who asks for columns learns how many."""
    right = table.shape == (count, 4) and table.dtype == np.int32 and not misplaced(table, resolution).any()
    return table if right else np.zeros((count, 4), np.int32)


def misplaced(table: NDArray, resolution: int) -> NDArray[np.bool_]:
    """Which elements of a table `dimensionR` were never written or name positions outside of `zR`."""
    return np.asarray((table < 0) | (table >= np.array([2**31 - 1, 2**31 - 1, resolution, resolution])))


def _check_counts(dimensions: Mapping[str, int], mask: Mapping[str, Any]) -> None:
    """`StoreError` if the mask keeps other numbers of dimensions: before a table of any size is made room for."""
    if not all("keep" in group for group in mask.get("groups", [{}])):
        return
    kept: dict[str, int] = {}
    for group in mask["groups"]:
        count = sum(_length(span) for ranges in group["keep"].values() for span in ranges.split())
        if count:
            kept[str(group["resolution"])] = kept.get(str(group["resolution"]), 0) + count
    if kept != dict(dimensions):
        raise StoreError(f"its metadata name {dict(dimensions)} dimensions, its mask keeps {kept}")


def _length(span: str) -> int:
    """Positions in a range such as `0-5` or `7`."""
    first, _, last = span.partition("-")
    return int(last or first) - int(first) + 1


_KINDS: Mapping[str, type[VariateColumns] | type[PositionColumns]] = {
    kind.granularity: kind for kind in (VariateColumns, PositionColumns)
}


def read_columns(metadata: StoreMetadata, read_table: Callable[[str], NDArray]) -> Columns:
    """The columns of a store with `metadata`; `read_table` gives its tables by name.

    Columns of a table that is damaged are all 0, but right in number. Raises `StoreError` if the metadata are damaged.
    """
    granularity = metadata.columns.get("granularity", "variate")
    if granularity not in _KINDS:
        raise StoreError(f"its granularity is {granularity!r}, not variate or position")
    try:
        columns = _KINDS[granularity].read(metadata, read_table)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise StoreError(f"its metadata are damaged ({error!r})") from None
    if not columns.resolutions:
        raise StoreError("its metadata name no latents")
    return columns
