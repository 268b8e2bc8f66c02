"""Where other processes find an unfinished store, which tells them itself what the latents in it are.

    driver   UnfinishedReference ── with each task ──> worker ── open ──> mask, codec, steps, layout

A mask of a million single positions takes 69 MB, with its steps and tables; the store has it, and who writes row groups
sees the store.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import StoreError
from ..storage.location import Location
from .metadata import fingerprint_in
from .reader import Store, open_unfinished
from .row_group_writer import RowGroupWriter


@dataclass(frozen=True)
class UnfinishedReference:
    """An unfinished store; picklable, and small whatever its mask is."""

    unfinished: Location  # where its objects are, absolute
    document: Location  # what has its fingerprint until it is published, absolute
    fingerprint: str

    @classmethod
    def of(cls, writer: RowGroupWriter) -> UnfinishedReference:
        """Refer to the store that `writer` writes."""
        return cls(writer.unfinished.absolute(), writer.document.absolute(), writer.fingerprint)

    @property
    def is_here(self) -> bool:
        """Whether this process sees the store, and it is not another one."""
        return fingerprint_in(self.document.uncached) == self.fingerprint

    def open(self) -> Store:
        """Open it, without latents; `StoreError` if it is not there, was replaced meanwhile, or is damaged."""
        store = open_unfinished(self.unfinished, self.document)
        if store.metadata.fingerprint != self.fingerprint or not self.is_here:  # also after its tables were read
            raise StoreError(f"{self.unfinished} was removed or replaced while it was written; run the same again")
        return store

    def open_writer(self) -> RowGroupWriter:
        """What writes its row groups; raises like `open`."""
        return self.writer_of(self.open())

    def writer_of(self, store: Store) -> RowGroupWriter:
        """The same, of the store that `open` gave."""
        return RowGroupWriter(self.unfinished, self.document, self.fingerprint, store.layout)
