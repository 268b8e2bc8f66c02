"""A store opened for verification: as much of it as can be read, and what of its metadata cannot.

`open_store` refuses a store whose metadata are damaged. Here everything else is still to be looked at.
"""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from ..encode.embedded_model import ARRAY
from ..errors import HvaeCodecError, StoreError, UnreachableError
from ..storage.location import Location, array_folders, files_at, prefetch, zarr_location
from .arrays import ATTRIBUTE, COPY_HOLDER, FORMAT_VERSION, NO_TEXT, array_checksum, attributes_checksum
from .columns import Columns, PositionColumns, read_columns
from .damage import Damage, UnreadableError, reading
from .metadata_copy import find_copy, is_finished
from .quantiser import Codec, codec_from_dict
from .reader import check_version, metadata_fault, read_metadata
from .structure import ArraySchema, count_images, expected_arrays

COPY_FILE = f"{COPY_HOLDER}/zarr.json"
"""What holds the second copy of the metadata."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A store whose files may be damaged."""

    path: Location
    """Its folder, or where it is in a bucket."""
    metadata: Mapping[str, Any]
    """The group's `hvae_codec` attribute or, where that is damaged, its second copy."""
    group_fault: str
    """What is wrong with the group's `zarr.json`, to be read after its name; empty where nothing is."""
    columns: Columns
    """Their places are 0 where a table of them is damaged; their numbers are right."""
    codec: Codec
    row_group_size: int
    images: int
    """By the length of most arrays."""
    arrays: Mapping[str, zarr.Array]
    """Arrays whose metadata can be read, by name; per-image figures too, a user's own not."""
    forms: Mapping[str, ArraySchema]
    """What the arrays that every store has must be."""

    @classmethod
    def open(cls, path: Location) -> Subject:
        """Raises `StoreError` where there is no store, or where the group's metadata do not say what must be in it."""
        metadata, group_fault = sound_metadata(path)
        try:
            codec, row_group_size = codec_from_dict(metadata["codec"]), int(metadata["shard"])
            columns = _columns(path, metadata)
            if row_group_size < 1:
                raise ValueError(f"row groups are of {row_group_size} images")
        except UnreachableError:
            raise
        except (HvaeCodecError, LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise StoreError(
                f"{path / 'zarr.json'} has damaged metadata ({error}), without which nothing can be told; "
                "restore it from a copy or encode the images again"
            ) from None
        arrays = dict(_readable_arrays(path))
        images = count_images(arrays, columns)
        forms = expected_arrays(columns, codec, images, row_group_size)
        if isinstance(metadata.get("arrays"), Mapping):  # others are a user's
            arrays = {name: array for name, array in arrays.items() if name in {*forms, *metadata["arrays"]}}
        return cls(path, metadata, group_fault, columns, codec, row_group_size, images, arrays, forms)

    @property
    def row_groups(self) -> int:
        """Row groups of the store."""
        return -(-self.images // self.row_group_size)

    def rows(self, row_group: int) -> range:
        """Numbers of the images in a row group."""
        return range(row_group * self.row_group_size, min((row_group + 1) * self.row_group_size, self.images))

    @property
    def checksums(self) -> Mapping[str, int]:
        """Checksums of the metadata of the arrays that were made with the store; none in stores of older versions."""
        known = self.metadata.get("arrays")
        return known if isinstance(known, Mapping) else {}

    @property
    def per_image(self) -> tuple[str, ...]:
        """Arrays of one number an image that were made with the store, such as `rate`."""
        known = self.checksums.keys() - self.forms.keys() - {ARRAY}
        axes = {name: getattr(array.metadata, "dimension_names", None) for name, array in self.arrays.items()}
        return tuple(sorted(name for name in known if name not in axes or axes[name] == ("image",)))

    @functools.cached_property
    def files(self) -> dict[str, set[str]]:
        """Files of each array, of those that ought to be there too, relative to its folder."""
        files: dict[str, set[str]] = {name: set() for name in (*self.forms, *self.extra)}
        for key in self.listing:
            name, _, file = key.partition("/")
            if file and name in files:
                files[name].add(file)
        return files

    @functools.cached_property
    def listing(self) -> list[str]:
        """Every file of the store, relative to it."""
        return [key for key, _ in files_at(self.path)]

    @property
    def extra(self) -> list[str]:
        """Arrays that not every store has, such as `rate`."""
        return sorted((self.arrays.keys() | self.checksums.keys()) - self.forms.keys())

    @functools.cached_property
    def misshapen(self) -> set[str]:
        """Arrays whose metadata are damaged or missing, so that their elements cannot be read."""
        return {damage.file.split("/")[0] for damage in self._array_damages}

    @functools.cached_property
    def metadata_damages(self) -> list[Damage]:
        """What is wrong with the `zarr.json` of the group and of its arrays."""
        group = [Damage("zarr.json", self.group_fault)] if self.group_fault else []
        copy = [] if COPY_HOLDER in self.misshapen else list(self._copy_damages())
        return [*group, *copy, *self._array_damages]

    def _copy_damages(self) -> Iterator[Damage]:
        """That the second copy of the metadata is damaged; all else of its array is whole."""
        if "copy" not in self.metadata:
            return
        copy = find_copy(self.path)
        if copy is None:
            yield Damage(COPY_FILE, "has no whole copy of the store's metadata")
        elif copy["fingerprint"] != self.metadata.get("fingerprint"):
            yield Damage(COPY_FILE, "has a whole copy of other metadata than the group's zarr.json")

    @functools.cached_property
    def _array_damages(self) -> list[Damage]:
        return [damage for name in (*self.forms, *self.extra) for damage in self._damages_of(name)]

    def _damages_of(self, name: str) -> Iterator[Damage]:
        file, form = f"{name}/zarr.json", self.forms.get(name)
        per_image = name in self.per_image if form is None else form.dimension_names[0] == "image"
        images = range(self.images) if per_image or name.startswith(("step", "dimension")) else ()
        if not (self.path / file).is_file():
            yield Damage(file, "is missing", images)
            return
        if name not in self.arrays:
            try:
                reading(_open_array, self.path, name)
            except UnreadableError as error:
                yield Damage(file, str(error), images)
            return
        faults = list(form.faults(self.arrays[name]) if form else self._length_faults(self.arrays[name]))
        if not faults and self._was_changed(name):
            faults = ["does not match its checksum"]
        yield from (Damage(file, fault, images) for fault in faults)

    def _length_faults(self, array: zarr.Array) -> Iterator[str]:
        axes = getattr(array.metadata, "dimension_names", None) or ("",)
        if axes[0] == "image" and array.shape[0] != self.images:
            yield f"has {array.shape[0]} images, not {self.images}"

    def _was_changed(self, name: str) -> bool:
        known = self.checksums.get(name)
        document = json.loads((self.path / name / "zarr.json").read_text(encoding="utf-8"))
        return known is not None and known != array_checksum(document)

    def names_of(self, images: Sequence[int]) -> list[str]:
        """Names of those of `images` whose names can be read."""
        array = self.arrays.get("name")
        names = []
        for image in images if array is not None else ():
            try:
                names.append(str(reading(operator.getitem, array, image)))
            except UnreadableError:
                continue
        return [name for name in names if name != NO_TEXT]


def sound_metadata(path: Location) -> tuple[Mapping[str, Any], str]:
    """A store's metadata, from their second copy where they are damaged, and what is wrong with the group's file.

    Raises like `open_store` where there is neither.
    """
    try:
        metadata = read_metadata(path)[1]
    except StoreError:
        found = _whole_attribute(path) or find_copy(path)
        if found is None:
            raise
        return found, "does not hold a store's metadata" if (path / "zarr.json").is_file() else "is missing"
    fault = metadata_fault(path, metadata)
    copy = find_copy(path) if fault else None
    if copy is not None:
        return copy, fault
    check_version(path, metadata)
    return metadata, fault or _node_fault(path)


def _whole_attribute(path: Location) -> Mapping[str, Any] | None:
    """The group's own metadata where they are whole by their checksum, in a file that zarr takes for no group."""
    if not is_finished(path):
        return None
    try:
        metadata = json.loads((path / "zarr.json").read_bytes())["attributes"][ATTRIBUTE]
        whole = metadata["checksum"] == attributes_checksum(metadata) and metadata["format_version"] <= FORMAT_VERSION
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return metadata if whole else None


def _node_fault(path: Location) -> str:
    """What is wrong with the group's file besides its attributes: not all readers of zarr look as loosely at it."""
    document = json.loads((path / "zarr.json").read_bytes())
    whole = (document.get("zarr_format"), document.get("node_type")) == (3, "group")
    return "" if whole else "does not say that it is a zarr group"


def _columns(path: Location, metadata: Mapping[str, Any]) -> Columns:
    """The columns; places 0 where the tables of them are damaged, which is told when those are looked at."""

    def read(name: str) -> np.ndarray:
        resolution = name.removeprefix("dimension")
        nothing = np.zeros((int(metadata["dimensions"][resolution]), 4), np.int32)
        try:
            table = reading(lambda: np.asarray(_open_array(path, name)[:]))
            PositionColumns.read({"dimensions": {resolution: len(nothing)}, "mask": {}}, lambda _: table)
        except (UnreadableError, StoreError):
            return nothing
        return table

    return read_columns(metadata, read)


def _readable_arrays(path: Location) -> Iterator[tuple[str, zarr.Array]]:
    # Folders, not the group's members: zarr warns of each file that is none of its own.
    names = array_folders(path)
    prefetch(path, [f"{name}/zarr.json" for name in names])
    for name in names:
        if (path / name / "zarr.json").is_file():
            try:
                yield name, reading(_open_array, path, name)
            except UnreadableError:
                continue


def _open_array(path: Location, name: str) -> zarr.Array:
    # Not through the group, whose metadata may be damaged.
    return zarr.open_array(zarr_location(path) / name, mode="r", zarr_format=3)
