"""Which of the images given are those of a row group: by their number if their source is known, else by their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ..data.sources import ImageSource
from ..errors import StoreError
from ..store.reader import Store
from ..texts.index import TextIndex
from ..verification.inspection import Inspection


@dataclass(frozen=True)
class RepairItem:
    """A damaged row group and the images given for it."""

    number: int
    images: ImageSource  # its images, in their order
    positions: Sequence[int]  # where they are among those given
    are_known: bool  # whether they are proven to be those by a source's fingerprint

    def __str__(self) -> str:
        return f"row group {self.number}"


@dataclass(frozen=True, eq=False)
class GivenImages:
    """The images that a store is repaired from."""

    inspection: Inspection  # the store
    source: ImageSource

    @property
    def store(self) -> Store:
        """The store as far as it can be read."""
        return self.inspection.store

    def item(self, row_group: int, *, travels: bool) -> RepairItem:
        """Choose those of a row group, in a form that can be sent elsewhere if it `travels`.

        Raises `StoreError` if some are missing, or their names are lost; `DataError` if one that cannot be sent without
        its pixels cannot be read.
        """
        rows = self.store.row_groups.rows(row_group)
        known = rows[0] in self._known and rows[-1] in self._known
        positions = self._positions(rows, known)
        images = self.source.portion(positions) if travels else self.source.subset(positions)
        return RepairItem(row_group, images, positions, known)

    def _positions(self, rows: range, known: bool) -> Sequence[int]:
        if known:
            return range(rows.start - self._known.start, rows.stop - self._known.start)
        lost = f"images {rows.start} to {rows.stop - 1} cannot be encoded again"
        names = self.inspection.names_of(rows)
        if len(names) < len(rows):
            raise StoreError(f"{lost}: their names are lost")
        found = self._by_name.find(names).tolist()
        missing = [name for name, position in zip(names, found, strict=True) if position < 0]
        if missing:
            more = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
            raise StoreError(
                f"{lost}: {missing[0]}{more} are not among the images given; give the images that were encoded"
            )
        return found

    @cached_property
    def _known(self) -> range:
        """Numbers, in the store, of the images given, if these are a source that the store was made from."""
        first = 0
        for part in self.store.metadata.source.parts_of(len(self.store)):
            if part.fingerprint == self.source.fingerprint:
                return range(first, first + part.images)
            first += part.images
        return range(0)

    @cached_property
    def _by_name(self) -> TextIndex:
        return TextIndex(self.source.names)
