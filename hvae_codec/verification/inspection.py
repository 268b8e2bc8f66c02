"""What is wrong with a store besides its latents: metadata, missing files, tables, their fingerprint; each read once.

In zarr a file that is missing reads as fill values, without an error. So files are looked at, not only elements.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import zarr
from numpy.typing import NDArray

from ..errors import StoreError
from ..store.columns import misplaced
from ..store.damage import Damage, UnreadableError, reading
from ..store.group_file import COPY_FILE, GROUP_FILE, find_copy
from ..store.metadata import COPY_HOLDER
from ..store.reader import Store
from ..store.schema import (
    IMAGE_TABLES,
    NO_TEXT,
    RECORDS,
    chunk_files,
    dimension_names,
    is_chunk_file,
    missing_records,
)
from ..store.spec import spec_fingerprint

NAMED_FILES = 3  # files that are no part of the store and are named; the others are counted


@dataclass(frozen=True, eq=False)
class Inspection:
    """What is wrong with a store that `open_damaged` gave."""

    store: Store

    @functools.cached_property
    def damages(self) -> list[Damage]:
        """Everything but latents and digests; of those, which files are missing."""
        damages = [*self.metadata_damages, *self._missing_files, *self._table_damages]
        others = {damage.file for damage in damages} - {COPY_FILE}
        # A store that does not say how large its chunks may be is tried with the usual size, and not condemned.
        if not others and self.tables_prove is False and self.store.metadata.chunk_bytes is not None:
            problem = "has the fingerprint of other names, labels, steps or settings than the store's"
            damages.append(Damage(GROUP_FILE, problem))
        return damages

    # Files.

    @functools.cached_property
    def listing(self) -> list[str]:
        """Every file of the store, relative to it."""
        return [key for key, _ in self.store.path.files()]

    @functools.cached_property
    def files(self) -> dict[str, set[str]]:
        """Files of each array that was made with the store, relative to its folder; of all arrays if none is known."""
        own, schema = self.store.metadata.arrays, self.store.arrays.schema
        if own is None:  # what cannot be opened may be a user's group
            own = {name: 0 for name in self.store.path.array_folders() if self.store.arrays.find(name) is not None}
        more = own.keys() - schema.keys()
        files: dict[str, set[str]] = {name: set() for name in [*schema, *sorted(more)]}
        for key in self.listing:
            name, _, file = key.partition("/")
            if file and name in files:
                files[name].add(file)
        return files

    def _sound_arrays(self) -> Iterator[tuple[str, zarr.Array]]:
        """Those whose metadata are whole."""
        for name in self.files:
            array = self.store.arrays.find(name)
            if array is not None and not self._array_fault(name):
                yield name, array

    @functools.cached_property
    def _missing_files(self) -> list[Damage]:
        return [
            self._damage(name, array, key, spans, "is missing")
            for name, array in self._sound_arrays()
            for key, spans in chunk_files(array)
            if key not in self.files[name]
        ]

    def _damage(self, name: str, array: zarr.Array, key: str, spans: tuple[slice, ...], problem: str) -> Damage:
        """A damage to the file `key` of the array `name`, and to the images whose elements, `spans`, are in it."""
        row_groups, file, first = self.store.row_groups, f"{name}/{key}", spans[0].start
        if name == COPY_HOLDER:
            return Damage(file, problem, row_groups.rows(first), first)
        if dimension_names(array)[:1] == ("image",):
            is_written_with_latents = name in self.store.arrays.schema and name not in IMAGE_TABLES
            row_group = row_groups.of(first) if is_written_with_latents else None
            return Damage(file, problem, range(first, spans[0].stop), row_group)
        return Damage(file, problem, range(len(self.store)) if _is_of_all(name) else ())

    # Metadata.

    @functools.cached_property
    def metadata_damages(self) -> list[Damage]:
        """What is wrong with the `zarr.json` of the group and of its arrays."""
        fault = self.store.group_file.fault
        group = [Damage(GROUP_FILE, fault)] if fault else []
        arrays = [Damage(f"{name}/zarr.json", fault, self._all_of(name)) for name, fault in self._array_faults()]
        copy = self._copy_damage() if COPY_FILE not in {damage.file for damage in arrays} else []
        return [*group, *copy, *arrays]

    def _array_faults(self) -> Iterator[tuple[str, str]]:
        return ((name, fault) for name in self.files if (fault := self._array_fault(name)))

    def _array_fault(self, name: str) -> str:
        """What is wrong with an array's metadata; shards count here, which a reader need not care about."""
        arrays = self.store.arrays
        array, schema, fault = arrays.find(name), arrays.schema.get(name), arrays.fault(name)
        if fault or array is None or schema is None or schema.shards in (None, array.shards):
            return fault
        return f"has shards of {list(array.shards or ())}, not {list(schema.shards or ())}"

    def _all_of(self, name: str) -> range:
        """The images that an array without its metadata leaves unread."""
        schema = self.store.arrays.schema.get(name)
        of_images = schema is not None and schema.dimension_names[0] == "image"
        return range(len(self.store)) if of_images or _is_of_all(name) else range(0)

    def _copy_damage(self) -> list[Damage]:
        """That the second copy of the metadata is damaged; all else of its array is whole."""
        if not self.store.metadata.has_copy:
            return []
        copy = find_copy(self.store.path)
        if copy is None:
            return [Damage(COPY_FILE, "has no whole copy of the store's metadata")]
        same = copy.fingerprint == self.store.metadata.fingerprint
        return [] if same else [Damage(COPY_FILE, "has a whole copy of other metadata than the group's zarr.json")]

    # Tables: the arrays besides latents and digests.

    @functools.cached_property
    def _table_damages(self) -> list[Damage]:
        """Elements of tables that cannot be read or were never written, file by file."""
        return [
            self._damage(name, array, key, spans, problem)
            for name, array in self._sound_arrays()
            if not (name == COPY_HOLDER or _is_latents(name) or self._is_whole(name))
            for key, spans in chunk_files(array)
            if key in self.files[name] and (problem := self._problem(name, array, spans))
        ]

    def _is_whole(self, name: str) -> bool:
        """Whether a table can be read at once, as the store does: then its files need not be looked at one by one."""
        try:
            if name in ("name", "label"):
                return bool(self.store.names if name == "name" else self.store.labels)
            return name.startswith("step") and bool(self.store.steps)
        except StoreError:
            return False

    def _problem(self, name: str, array: zarr.Array, spans: tuple[slice, ...]) -> str:
        """What is wrong with elements of a table; empty if nothing is."""
        try:
            values = reading(lambda: np.asarray(array[spans]))
        except UnreadableError as error:
            return str(error)
        is_record = self.store.metadata.has_records and name in RECORDS
        wrong = missing_records(name, values) if is_record else _wrong(name, values)
        return "holds elements that were never written or cannot be right" if wrong.any() else ""

    @property
    def _image_tables(self) -> tuple[str, ...]:
        """Names of the store's tables of images, which its fingerprint vouches for."""
        return tuple(name for name in IMAGE_TABLES if name in self.store.arrays.schema)

    @functools.cached_property
    def tables_prove(self) -> bool | None:
        """Whether the tables have the fingerprint of the metadata: none is of another store. None if one is damaged."""
        damaged = {damage.file.partition("/")[0] for damage in (*self._missing_files, *self._table_damages)}
        damaged |= {name for name, _ in self._array_faults()}
        if any(name in self._image_tables or _is_of_all(name) for name in damaged):
            return None
        try:
            return spec_fingerprint(self.store.spec()) == self.store.metadata.fingerprint
        except StoreError:  # whole tables that make no store
            return False

    # What is said.

    def names_of(self, images: Sequence[int]) -> list[str]:
        """Names of those of `images` whose names can be read."""
        array = self.store.arrays.find("name")
        names = [_text(array, image) for image in images if array is not None]
        return [name for name in names if name != NO_TEXT]

    def notes(self) -> Iterator[str]:
        """What is worth knowing but no damage, one sentence each."""
        metadata, path, stray = self.store.metadata, self.store.path, sorted(self._stray())
        if stray:
            shown = ", ".join(stray[:NAMED_FILES]) + (", ..." if len(stray) > NAMED_FILES else "")
            yield f"{len(stray)} files are no part of the store: {shown}"
        if metadata.arrays is None:
            yield "the store is of an older version, whose metadata have no checksum"
        if metadata.chunk_bytes is None and self.tables_prove is False:
            yield "names, labels and steps could not be compared with the fingerprint"
        for ending, meaning in ((".partial", "an unfinished store"), (".replaced", "a store that was being replaced")):
            beside = path.with_name(path.name + ending)
            if beside.exists():
                yield f"{beside} is beside it, {meaning}"

    def _stray(self) -> Iterator[str]:
        """Files that no part of the store asks for."""
        for entry in {first + slash for first, slash, _ in (key.partition("/") for key in self.listing)}:
            if entry.rstrip("/") not in self.files and entry != GROUP_FILE:
                yield entry
        for name, array in self._sound_arrays():
            for file in self.files[name] - {"zarr.json"}:
                if not is_chunk_file(array, file):
                    yield f"{name}/{file}"


def _text(names: zarr.Array, image: int) -> str:
    try:
        return str(reading(lambda: np.asarray(names[image])))
    except UnreadableError:
        return NO_TEXT


def _is_latents(name: str) -> bool:
    return name[0] == "z" and name[1:].isdecimal()


def _is_of_all(name: str) -> bool:
    """Whether a table is needed to read any image."""
    return name.startswith(("step", "dimension"))


def _wrong(name: str, values: NDArray) -> NDArray[np.bool_]:
    """Whether each element of a table cannot be right."""
    if values.dtype.kind == "T":
        return np.asarray(values == NO_TEXT)
    if name.startswith("step"):
        return ~(np.isfinite(values) & (values > 0))
    if name.startswith("dimension"):
        return np.asarray(misplaced(values, int(name.removeprefix("dimension"))))
    return np.asarray(np.isnan(values) if values.dtype.kind == "f" else np.zeros(1, bool))
