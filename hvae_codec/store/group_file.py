"""The group's `zarr.json`, where a store's metadata stand, and the second copy from which that file is restored.

    zarr.json             attributes.hvae_codec        the metadata
    committed/zarr.json   attributes.hvae_codec_copy   the same, as JSON text

That one small file says what all the others mean, and images and model are not enough to write it again: without the
mask and the steps' ranking, the latents of a store would be lost with it. Stores of older versions have no copy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import zarr
from zarr.storage import MemoryStore

from ..errors import StoreError
from ..storage.location import UNFINISHED, Location
from .metadata import (
    ATTRIBUTE,
    COPY_HOLDER,
    FORMAT_VERSION,
    StoreMetadata,
    attribute_checksum,
    attribute_of,
    copied_attribute_of,
    fingerprint_of,
)

GROUP_FILE = "zarr.json"
COPY_FILE = f"{COPY_HOLDER}/zarr.json"  # what holds the second copy of the metadata
REMEDY = "restore the store from a copy or encode the images again"


@dataclass(frozen=True)
class GroupFile:
    """What a store says of itself, and whether its group's file does."""

    metadata: StoreMetadata  # those of the group's file or, if they are damaged, of their second copy
    fault: str = ""  # what is wrong with the group's file, to be read after its name; empty if nothing is
    is_proven: bool = True  # whether the metadata's checksum is right: the file may be written again from them


def read_group(location: Location) -> GroupFile:
    """The metadata of the store at `location`, damaged or not.

    Raises `StoreError` if there is no store, or if it is unfinished, of a newer format, of somebody else, or damaged
    without a copy.
    """
    location.prefetch([GROUP_FILE])
    content = None if location.name.endswith(".partial") else _content(location)
    attribute = attribute_of(content) if content is not None else None
    fault = _fault(content, attribute)
    if is_finished(location) and _is_whole(attribute):
        return GroupFile(_parsed(location, attribute), fault)
    copy = find_copy(location)
    if not fault and "checksum" not in (attribute or {}):
        fault = "has lost its checksum" if copy and fingerprint_of(content or b"") == copy.fingerprint else ""
    if fault and copy:
        return GroupFile(copy, fault)
    if attribute is None:
        raise StoreError(_why_no_store(location, content))
    _check_version(location, attribute)
    return GroupFile(_parsed(location, attribute), fault, is_proven=False)


def _parsed(location: Location, attribute: Any) -> StoreMetadata:
    try:
        return StoreMetadata.from_attribute(attribute)
    except StoreError as error:
        raise StoreError(f"{location / GROUP_FILE}: {error}; {REMEDY}") from None


def read_metadata(location: Location) -> StoreMetadata:
    """The metadata of the store at `location`; raises like `read_group`, and if the group's file is damaged."""
    found = read_group(location)
    if found.fault and found.is_proven:
        raise StoreError(f"{location / GROUP_FILE} is missing or damaged; `hvae-codec repair {location}` restores it")
    if found.fault:
        raise StoreError(f"{location}: its metadata are damaged, they have another checksum; {REMEDY}")
    return found.metadata


def read_unfinished(document: Location) -> GroupFile:
    """The metadata in `document` of a store that is being written; `StoreError` if they are not there or damaged."""
    try:
        content = document.uncached.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        content = None
    attribute = attribute_of(content) if content is not None else None
    fault = _fault(content, attribute)
    if fault or attribute is None:
        raise StoreError(f"{document} {fault}; remove the unfinished store, and encode again")
    return GroupFile(StoreMetadata.from_attribute(attribute))


def is_replaced(location: Location, metadata: StoreMetadata) -> bool:
    """Whether another store, such as one with more images, has taken the place of the one with `metadata`."""
    content = _content(location.uncached)
    found = fingerprint_of(content) if content is not None else None
    return found is not None and found != metadata.fingerprint


def find_copy(location: Location) -> StoreMetadata | None:
    """The second copy of the metadata of the finished store at `location`; None if there is none that is whole."""
    if not is_finished(location):
        return None
    try:
        attribute = copied_attribute_of((location / COPY_FILE).read_bytes())
    except OSError:
        return None
    return _parsed(location, attribute) if _is_whole(attribute) else None


def is_finished(location: Location) -> bool:
    """Whether what is at `location` can be a store or what is left of one, and is not one that is being written."""
    unfinished = (location / UNFINISHED).is_file() and not (location / GROUP_FILE).is_file()
    return not (unfinished or location.name.endswith((".partial", ".replaced")))


def group_document(location: Location, metadata: StoreMetadata) -> bytes:
    """The group's `zarr.json` with `metadata`, as the writer writes it.

    What a user has added to the attributes of the one at `location` stays, if it can still be read.
    """
    objects: dict[str, Any] = {}
    group = zarr.open_group(MemoryStore(objects), mode="w-", zarr_format=3)
    group.update_attributes({**_attributes(location), ATTRIBUTE: metadata.to_attribute()})
    return bytes(objects[GROUP_FILE].to_bytes())


def _attributes(location: Location) -> Mapping[str, Any]:
    """Attributes of the group; empty if ours is not among them, whose name a changed byte may have made another."""
    content = _content(location)
    if content is None or attribute_of(content) is None:
        return {}
    attributes: Mapping[str, Any] = json.loads(content)["attributes"]
    return attributes


def _content(location: Location) -> bytes | None:
    try:
        return (location / GROUP_FILE).read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def _fault(content: bytes | None, attribute: Mapping[str, Any] | None) -> str:
    """What is wrong with the group's file, as far as it tells itself."""
    if content is None:
        return "is missing"
    if attribute is None:
        return "does not hold a store's metadata"
    if "checksum" in attribute and attribute["checksum"] != attribute_checksum(attribute):
        return "does not match its checksum: the store's metadata were changed"
    return "" if _is_group(content) else "does not say that it is a zarr group"


def _is_group(content: bytes) -> bool:
    try:
        document = json.loads(content)
        return (document.get("zarr_format"), document.get("node_type")) == (3, "group")
    except (ValueError, AttributeError):
        return False


def _is_whole(attribute: Mapping[str, Any] | None) -> bool:
    """Whether the attribute has its checksum, and a version that is read."""
    if attribute is None or attribute.get("checksum") != attribute_checksum(attribute):
        return False
    version = attribute.get("format_version")
    return isinstance(version, int) and version <= FORMAT_VERSION


def _check_version(location: Location, attribute: Mapping[str, Any]) -> None:
    version = attribute.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise StoreError(
            f"{location} has format version {version}, this package reads up to {FORMAT_VERSION}; update hvae-codec"
        )


def _why_no_store(location: Location, content: bytes | None) -> str:
    if content is not None and _is_group(content):
        return f"{location} is a zarr group but no latent store of this package; give the folder encode wrote"
    if content is not None:
        return f"{location} is no readable zarr group; give the folder that encode wrote"
    unfinished = "run the same encode command again to finish it"
    if not location.exists():
        if location.with_name(f"{location.name}.partial").exists():
            return f"{location} is unfinished; {unfinished}"
        return f"there is no store {location}; check the path or run encode first"
    if location.name.endswith(".partial"):
        return f"{location} is an unfinished store; {unfinished}"
    if (location / UNFINISHED).is_file():
        return f"{location} is unfinished; {unfinished}"
    return f"{location} is no zarr store (it has no zarr.json); give the folder that encode wrote"
