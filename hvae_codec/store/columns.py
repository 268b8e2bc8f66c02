"""Columns of the stored arrays: what is kept of each latent resolution, whole variates or single latent dimensions.

    granularity   stored array             a column is                   its place               noted in
    variate       z16 [image, c16, y, x]   a variate at all positions    group, variate          attribute `channels`
    position      z16 [image, d16]         one latent dimension          group, variate, y, x    array `dimension16`

All that differs between stores of the two granularities is here; nothing here needs torch.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import StoreError

if TYPE_CHECKING:
    from ..prune.mask import LatentMask
    from ..prune.ranking import Granularity

Coordinates = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Columns(abc.ABC):
    """What stands along the second axis of each `zR`, after the images."""

    coordinates: Mapping[int, Coordinates]
    """Latent resolution to the place of each column, ascending; its first numbers are latent group and variate."""

    granularity: ClassVar[Granularity]
    format_version: ClassVar[int]
    """The lowest version of the format that a reader must know."""

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Latent resolutions that have columns, ascending."""
        return tuple(sorted(resolution for resolution, coordinates in self.coordinates.items() if len(coordinates)))

    def count(self, resolution: int) -> int:
        """Columns of `zR`: one quantiser step each."""
        return len(self.coordinates[resolution])

    def agree_with(self, other: Columns) -> bool:
        """Whether both are the same columns."""
        same = self.granularity == other.granularity and self.resolutions == other.resolutions
        return same and all(np.array_equal(self.coordinates[r], other.coordinates[r]) for r in self.resolutions)

    @abc.abstractmethod
    def item(self, resolution: int) -> tuple[int, ...]:
        """Shape of one image in `zR`; the columns come first."""

    @abc.abstractmethod
    def dimension_names(self, resolution: int) -> tuple[str, ...]:
        """Names of the axes of `item`."""

    @abc.abstractmethod
    def spread(self, steps: NDArray[np.float32]) -> NDArray[np.float32]:
        """`steps` [columns] shaped to broadcast against stored numbers, of one image or of several."""

    @abc.abstractmethod
    def attributes(self) -> dict[str, Any]:
        """Their part of the group's `hvae_codec` attribute."""

    @abc.abstractmethod
    def tables(self) -> dict[str, tuple[Coordinates, tuple[str, str]]]:
        """Arrays that note the places, with the names of their axes, by name."""


class VariateColumns(Columns):
    """Whole variates: places [channels, 2] are latent group and variate."""

    granularity = "variate"
    format_version = 1

    def item(self, resolution: int) -> tuple[int, ...]:
        """(channels, R, R)."""
        return (self.count(resolution), resolution, resolution)

    def dimension_names(self, resolution: int) -> tuple[str, ...]:
        """(cR, yR, xR)."""
        return (f"c{resolution}", f"y{resolution}", f"x{resolution}")

    def spread(self, steps: NDArray[np.float32]) -> NDArray[np.float32]:
        """[channels, 1, 1]."""
        return steps[:, None, None]

    def attributes(self) -> dict[str, Any]:
        """`channels`: resolution, as text, to the [group, variate] of each channel."""
        return {"channels": {str(r): self.coordinates[r].tolist() for r in self.resolutions}}

    def tables(self) -> dict[str, tuple[Coordinates, tuple[str, str]]]:
        """None: a few hundred pairs of numbers stand in the attribute."""
        return {}

    @classmethod
    def read(cls, metadata: Mapping[str, Any], read_array: Callable[[str], NDArray]) -> VariateColumns:
        """The inverse of `attributes`."""
        channels = metadata["channels"].items()
        return cls({int(r): np.array([(g, v) for g, v in c], np.int32).reshape(-1, 2) for r, c in channels})


class PositionColumns(Columns):
    """Single latent dimensions: places [dimensions, 4] are latent group, variate, y and x."""

    granularity = "position"
    format_version = 2

    def item(self, resolution: int) -> tuple[int, ...]:
        """(dimensions,)."""
        return (self.count(resolution),)

    def dimension_names(self, resolution: int) -> tuple[str, ...]:
        """(dR,)."""
        return (f"d{resolution}",)

    def spread(self, steps: NDArray[np.float32]) -> NDArray[np.float32]:
        """As they are."""
        return steps

    def attributes(self) -> dict[str, Any]:
        """`granularity`, and `dimensions`: resolution, as text, to how many there are."""
        return {"granularity": "position", "dimensions": {str(r): self.count(r) for r in self.resolutions}}

    def tables(self) -> dict[str, tuple[Coordinates, tuple[str, str]]]:
        """`dimensionR`, int32 [dimensions, 4]."""
        return {_table(r): (self.coordinates[r], (f"d{r}", "place")) for r in self.resolutions}

    @classmethod
    def read(cls, metadata: Mapping[str, Any], read_array: Callable[[str], NDArray]) -> PositionColumns:
        """The inverse of `attributes` and `tables`; `StoreError` where a table is damaged."""
        _check_counts(metadata["dimensions"], metadata["mask"])
        coordinates = {int(r): read_array(_table(int(r))) for r in metadata["dimensions"]}
        for resolution, table in coordinates.items():
            count = metadata["dimensions"][str(resolution)]
            if table.shape != (count, 4) or table.dtype != np.int32:
                raise StoreError(f"array {_table(resolution)} is {table.dtype} {table.shape}, not int32 {(count, 4)}")
            if (table < 0).any() or (table[:, 2:] >= resolution).any():
                raise StoreError(f"array {_table(resolution)} is empty or names positions outside of z{resolution}")
        return cls(coordinates)


def _check_counts(dimensions: Mapping[str, int], mask: Mapping[str, Any]) -> None:
    """`StoreError` where the mask keeps other numbers of dimensions: before a table of any size is made room for."""
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


def _table(resolution: int) -> str:
    return f"dimension{resolution}"


def stored_columns(mask: LatentMask) -> Columns:
    """The columns that `mask` keeps: groups in top-down order, then variates, then positions row by row."""
    table: dict[int, list[NDArray[np.int64]]] = {}
    for group, (keep, resolution) in enumerate(zip(mask.keep, mask.resolutions, strict=True)):
        table.setdefault(resolution, []).append(np.insert(np.argwhere(keep), 0, group, axis=1))
    coordinates = {resolution: np.concatenate(parts).astype(np.int32) for resolution, parts in table.items()}
    return PositionColumns(coordinates) if mask.granularity == "position" else VariateColumns(coordinates)


def read_columns(metadata: Mapping[str, Any], read_array: Callable[[str], NDArray]) -> Columns:
    """The columns of a store with `metadata`; `read_array` gives its arrays by name.

    Raises `StoreError`, or what a dictionary raises, where the metadata or the tables are damaged.
    """
    granularity = metadata.get("granularity", "variate")
    kinds = {kind.granularity: kind for kind in (VariateColumns, PositionColumns)}
    if granularity not in kinds:
        raise StoreError(f"its granularity is {granularity!r}, not variate or position; encode the images again")
    columns = kinds[granularity].read(metadata, read_array)
    if not columns.resolutions:
        raise StoreError("its metadata name no latents; encode the images again")
    return columns
