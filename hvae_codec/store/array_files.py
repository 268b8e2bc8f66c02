"""The arrays of a store, opened when they are asked for, and what is wrong with their metadata or elements.

files.find("z16")    the array as it is, or None         files.fault("z16")    "has the shape [3], not [4]", or ""
files["z16"]         the array, or a `StoreError`        files.read("step16")  its elements, or a `StoreError`
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from ..errors import StoreError
from ..storage.location import Location
from .damage import UnreadableError, reading
from .group_file import REMEDY, is_replaced
from .metadata import StoreMetadata, array_checksum
from .schema import ArraySchema

MISSING = "is missing"


class ArrayFiles:
    """The arrays of the store at `location`; those that were made with it must be as `schema` says."""

    def __init__(self, location: Location, metadata: StoreMetadata) -> None:
        self.location = location
        self.metadata = metadata
        self.schema: Mapping[str, ArraySchema] = {}  # by name, once `know` was called
        self._opened: dict[str, zarr.Array | UnreadableError] = {}
        self._faults: dict[str, str] = {}

    def know(self, schema: Mapping[str, ArraySchema]) -> None:
        """Compare the arrays with `schema`, which follows from columns and images: these are read from them first."""
        self.schema = schema
        self._faults.clear()

    def __getitem__(self, name: str) -> zarr.Array:
        """The array `name`; `StoreError` if it is not there or its metadata are damaged."""
        fault, array = self.fault(name), self.find(name)
        if fault or array is None:
            problem = f"it has no array {name}" if fault == MISSING else f"array {name}: its zarr.json {fault}"
            raise self.damaged(problem)
        return array

    def find(self, name: str) -> zarr.Array | None:
        """The array `name` as it is; None if it is not there or cannot be opened."""
        if name not in self._opened:
            try:
                self._opened[name] = self._open(name)
            except UnreadableError as error:
                self._opened[name] = error
        found = self._opened[name]
        return None if isinstance(found, UnreadableError) else found

    def _open(self, name: str) -> zarr.Array:
        if not (self.location / name / "zarr.json").is_file():
            raise UnreadableError(MISSING)
        # Not through the group, whose metadata may be damaged.
        return reading(lambda: zarr.open_array(self.location.zarr_location() / name, mode="r", zarr_format=3))

    def fault(self, name: str) -> str:
        """What is wrong with the array's metadata, to be read after the name of its file; empty if nothing is."""
        if name not in self._faults:
            self._faults[name] = self._find_fault(name)
        return self._faults[name]

    def _find_fault(self, name: str) -> str:
        array = self.find(name)
        if array is None:
            return str(self._opened[name])
        fault = next(self.schema[name].faults(array), "") if name in self.schema else ""
        known = (self.metadata.arrays or {}).get(name)
        if fault or known is None:
            return fault
        document = json.loads((self.location / name / "zarr.json").read_bytes())
        return "" if known == array_checksum(document) else "does not match its checksum"

    def is_own(self, name: str) -> bool:
        """Whether `name` was made with the store; of any, in a store that does not say which were."""
        return self.metadata.arrays is None or name in self.metadata.arrays

    def read(self, name: str, selection: Any = slice(None)) -> NDArray:
        """Elements of the array `name`; `StoreError` if they cannot be read."""
        array = self[name]
        where = f"{selection}" if selection != slice(None) else "its entries"
        return self.or_damage(name, where, lambda: np.asarray(array[selection]))

    def or_damage(self, name: str, where: str, read: Callable[[], NDArray]) -> NDArray:
        """What `read` gives of the array `name`; `StoreError` that says `where` if it raises."""
        try:
            return reading(read)
        except UnreadableError as error:
            raise self.damaged(f"array {name} is damaged at {where}: {error}") from error

    def damaged(self, damage: str) -> StoreError:
        """`damage` as an error, or that it is none: the store on the disk is another one than was opened."""
        if is_replaced(self.location, self.metadata):
            return StoreError(f"{self.location} has grown or was replaced since it was opened; open it again")
        return StoreError(f"{self.location}: {damage}; {REMEDY}")


def image_numbers(rows: Sequence[int]) -> str:
    """Images as a sentence names them: `image 3`, `images 3 to 9`."""
    return f"image {rows[0]}" if len(rows) == 1 else f"images {min(rows)} to {max(rows)}" if rows else "no image"
