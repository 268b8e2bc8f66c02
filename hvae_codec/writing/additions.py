"""What a user has put into a store besides what the package wrote; no store that is made of it has that."""

from __future__ import annotations

import json

import zarr

from ..errors import StoreError
from ..storage.location import UNFINISHED
from ..store.folder_writer import OUR_ENTRIES
from ..store.metadata import ATTRIBUTE, COPY
from ..store.reader import Store
from ..store.schema import RECORDS


def added_to(store: Store) -> list[str]:
    """Name what was added to the store, such as `the array mine`, to be read within a sentence."""
    document = json.loads((store.path / "zarr.json").read_bytes())
    found = [f"the attribute {name}" for name in document.get("attributes", {}) if name != ATTRIBUTE]
    found += ["consolidated metadata"] if document.get("consolidated_metadata") else []
    names = [name for name in store.path.entries() if not name.startswith(".") and name != UNFINISHED]
    users = () if store.metadata.has_records else RECORDS
    arrays = all_arrays(store)
    added = [name for name in arrays if name not in (store.metadata.arrays or [name])]
    others = [name for name in names if name in users or not OUR_ENTRIES.fullmatch(name)]
    found += [name for name in others if name not in added] + [f"the array {name}" for name in added]
    found += [f"attributes of the array {name}" for name, array in arrays.items() if {*array.attrs} - {COPY}]
    return found


def all_arrays(store: Store) -> dict[str, zarr.Array]:
    """All arrays that are there, a user's too, by name; `StoreError` if one that was made with the store is damaged.

    (zarr's own listing warns of files that are none.)
    """
    found = {}
    for name in store.path.array_folders():
        array = store.arrays.find(name)
        if array is not None:
            found[name] = array
        elif name in (store.metadata.arrays or [name]):  # otherwise it is a group of a user's
            fault = store.arrays.fault(name)
            raise StoreError(
                f"{store.path}: the metadata of array {name} are damaged ({fault}); repair the store first"
            )
    return found
