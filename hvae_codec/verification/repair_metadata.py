"""Repairs the metadata and tables of a damaged store: the group's from their copy, all else made anew.

Before anything is replaced it is proven: an array's metadata by their checksum, tables by the store's fingerprint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from zarr.storage import MemoryStore

from ..errors import StoreError
from ..store.create import create_arrays, write_copy
from ..store.group_file import COPY_FILE, GROUP_FILE, find_copy, group_document
from ..store.metadata import array_checksum, attribute_of
from ..store.reader import Store
from ..store.spec import StoreSpec, spec_of
from .inspection import Inspection


def repair_group(inspection: Inspection) -> list[str]:
    """Write the group's `zarr.json` anew if it is damaged, from metadata that are whole; returns the file.

    Raises `StoreError` if these are the second copy, and another store's.
    """
    store = inspection.store
    if not store.group_file.fault or not store.group_file.is_proven:
        return []
    if not _is_of(inspection):
        raise StoreError(
            f"{store.path / GROUP_FILE} is damaged, and the second copy of the metadata in {COPY_FILE} is another "
            "store's; restore one of the two files from a copy of the store"
        )
    store.path.write(GROUP_FILE, group_document(store.path, store.metadata))
    return [GROUP_FILE]


def _is_of(inspection: Inspection) -> bool:
    """Whether whole metadata are of the store whose group's metadata are damaged.

    Its tables say so; if they are damaged too, what is left of the group's metadata must not say otherwise.
    """
    if inspection.tables_prove is not None:
        return inspection.tables_prove
    try:
        left = attribute_of((inspection.store.path / GROUP_FILE).read_bytes())
    except FileNotFoundError:
        return True
    return left is None or left.get("fingerprint") == inspection.store.metadata.fingerprint


def repair_arrays(inspection: Inspection) -> list[str]:
    """Make the damaged `zarr.json` of arrays anew; returns the files.

    What they must be follows from the group's metadata and the number of images. The tables must prove it or, if one
    is damaged, two arrays agree on it and at most one says otherwise. Arrays whose checksum is another, or not known,
    are left as they are.
    """
    store = inspection.store
    damaged = [file for damage in inspection.metadata_damages if (file := damage.file) != GROUP_FILE]
    if not may_copy(inspection):
        damaged = [file for file in damaged if file != COPY_FILE]
    if not damaged or not _is_counted(inspection):
        return []
    objects = _objects(store, _blank_spec(store))
    proven = [file for file in damaged if file in objects and _is_proven(store, file, objects[file])]
    for file in proven:
        store.path.write(file, objects[file])
    return proven


def _is_counted(inspection: Inspection) -> bool:
    """Whether it is sure how many images the store has."""
    if inspection.tables_prove is not None:
        return inspection.tables_prove
    store = inspection.store
    arrays = [store.arrays.find(name) for name in ("name", "label", *(f"z{r}" for r in store.resolutions))]
    found = [array.shape[0] for array in arrays if array is not None]
    agree = found.count(len(store))
    return agree > 1 and len(found) - agree <= 1


def may_copy(inspection: Inspection) -> bool:
    """Whether the second copy may be written: from whole metadata; over another whole copy only if the tables agree."""
    store = inspection.store
    copy = find_copy(store.path)
    same = copy is None or copy.fingerprint == store.metadata.fingerprint
    return not store.group_file.fault and (same or bool(inspection.tables_prove))


def _blank_spec(store: Store) -> StoreSpec:
    """A specification that gives arrays of the same metadata, but not their elements."""
    steps = {r: np.ones(store.columns.count(r), np.float32) for r in store.resolutions}
    texts, has_records = ["-"] * len(store), store.metadata.has_records
    return spec_of(
        store.metadata,
        names=texts,
        labels=texts,
        splits=[""] * len(store) if has_records else None,
        file_bytes=np.zeros(len(store), np.int64) if has_records else None,
        columns=store.columns,
        steps=steps,
        per_image=store.own_figures,
    )


def _is_proven(store: Store, file: str, content: bytes) -> bool:
    name = file.partition("/")[0]
    return array_checksum(json.loads(content)) == (store.metadata.arrays or {}).get(name)


def write_tables(store: Store, spec: StoreSpec, names: Sequence[str]) -> list[str]:
    """Replace all files of the tables `names` by those of `spec`; of what is written with row groups, the metadata."""
    objects = _objects(store, spec)
    files = [file for name in names for file in _files_of(name, objects)]
    for file in files:
        store.path.write(file, objects[file])
    return files


def _files_of(name: str, objects: Mapping[str, bytes]) -> list[str]:
    if name == "committed" or (name[0] == "z" and name[1:].isdecimal()):
        return [f"{name}/zarr.json"]
    return sorted(key for key in objects if key.startswith(f"{name}/"))


def _objects(store: Store, spec: StoreSpec) -> dict[str, bytes]:
    """The objects of a store of `spec` by key, with the second copy of the metadata if `store` has one."""
    objects: dict[str, Any] = {}
    group = zarr.open_group(MemoryStore(objects), mode="w-", zarr_format=3)
    create_arrays(group, spec)
    if store.metadata.has_copy:
        write_copy(group, store.metadata)
    return {key: content.to_bytes() for key, content in objects.items()}
