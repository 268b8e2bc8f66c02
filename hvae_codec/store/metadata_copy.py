"""The second copy of a store's metadata, from which its group's `zarr.json` is restored.

    zarr.json             attributes.hvae_codec        the metadata; `copy` names the array below
    committed/zarr.json   attributes.hvae_codec_copy   the same, as JSON text

That one small file says what all the others mean, and images and model are not enough to write it again: without the
mask and the steps' ranking, the latents of a store would be lost with it. Stores of older versions have no copy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import zarr
from zarr.storage import MemoryStore

from ..storage.location import UNFINISHED, Location
from .arrays import ATTRIBUTE, COPY, COPY_HOLDER, FORMAT_VERSION, attributes_checksum


def find_copy(path: Location) -> Mapping[str, Any] | None:
    """The second copy of the metadata of the finished store at `path`; None where there is none, or it is damaged.

    It is whole by its checksum, and of a version that is read.
    """
    if not is_finished(path):
        return None
    try:
        document = json.loads((path / COPY_HOLDER / "zarr.json").read_bytes())
        copy = json.loads(document["attributes"][COPY])
        whole = copy["checksum"] == attributes_checksum(copy) and copy["format_version"] <= FORMAT_VERSION
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return copy if whole else None


def is_finished(path: Location) -> bool:
    """Whether what is at `path` can be a store, or what is left of one: not one that is not yet, or not any more."""
    unfinished = (path / UNFINISHED).is_file() and not (path / "zarr.json").is_file()
    return not (unfinished or path.name.endswith((".partial", ".replaced")))


def group_file(path: Location, metadata: Mapping[str, Any]) -> bytes:
    """The group's `zarr.json` with `metadata`, as the writer writes it.

    What a user has added to the attributes of the one at `path` is kept, where they can still be read.
    """
    objects: dict[str, Any] = {}
    group = zarr.open_group(MemoryStore(objects), mode="w-", zarr_format=3)
    group.update_attributes({**_attributes(path), ATTRIBUTE: dict(metadata)})
    return bytes(objects["zarr.json"].to_bytes())


def _attributes(path: Location) -> Mapping[str, Any]:
    """Attributes of the group; empty where ours is not among them, whose name a changed byte may have made another."""
    try:
        attributes = json.loads((path / "zarr.json").read_bytes())["attributes"]
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return attributes if isinstance(attributes, Mapping) and ATTRIBUTE in attributes else {}
