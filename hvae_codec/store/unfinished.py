"""An unfinished store as whoever waits for it sees it: which row groups are committed, and what it takes so far."""

from __future__ import annotations

from dataclasses import dataclass

from ..storage.folder import FolderLocation
from ..storage.location import Location
from .array_files import ArrayFiles
from .metadata import StoreMetadata, attribute_of
from .open_writer import writer_class
from .rowgroups import RowGroups

_MARKERS = "committed/c/"


@dataclass(frozen=True)
class UnfinishedStore:
    """What an encode or append has written so far."""

    path: Location  # where the finished store will be
    location: Location  # where its objects are until then
    metadata: StoreMetadata
    row_groups: RowGroups
    committed: frozenset[int]  # row groups that are written
    bytes: int  # of all its files

    @property
    def images_done(self) -> int:
        """Images in committed row groups."""
        return sum(len(self.row_groups.rows(number)) for number in self.committed)


def find_unfinished(path: Location) -> UnfinishedStore | None:
    """Look for the unfinished store that is to be at `path`, or that is `path` itself, such as `out.zarr.partial`.

    None if there is none, or one that was killed while it was created. Reads no latents; lists all its files once.
    Raises `StoreError` if its metadata are of a newer version or damaged.
    """
    if path.folder is not None and path.name.endswith(".partial"):
        path = path.with_name(path.name.removesuffix(".partial"))
    document = writer_class(path).unfinished_file(path)
    attribute = attribute_of(document.read_bytes()) if document.is_file() else None
    if attribute is None:
        return None
    metadata = StoreMetadata.from_attribute(attribute)
    location = path if document.folder is None else FolderLocation(document.folder.parent)
    names = ArrayFiles(location, metadata).find("name")
    row_groups = RowGroups(0 if names is None else names.shape[0], metadata.row_group_size)
    sizes = dict(location.files())
    markers = (key.removeprefix(_MARKERS) for key in sizes if key.startswith(_MARKERS))
    committed = frozenset(int(number) for number in markers if number.isdecimal())
    return UnfinishedStore(path, location, metadata, row_groups, committed, sum(sizes.values()))
