"""A row group in another packing, as a task for any process that sees both stores: stateless and idempotent.

RecodeJob ── RowGroupRecoder.open, once in a process ──> recode_row_group(recoder, number): read, checked, written
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from ..engine.handshake import package_version
from ..engine.per_process import PerProcess
from ..engine.taking_part import taking_part
from ..store.reader import Store
from ..store.row_group_writer import RowGroupWriter
from ..store.unfinished_reference import UnfinishedReference
from ..verification.same_store import StoreReference
from .checked_store import CheckedStore
from .commit import write_row_group
from .driver import NumberedRowGroup
from .here import check_here


@dataclass(frozen=True, eq=False)
class RecodeJob:
    """What the tasks of one recode have in common; small."""

    store: StoreReference  # the old store
    unfinished: UnfinishedReference  # the new one
    version: str = field(default_factory=package_version)  # of this package, where the job was made

    def recoder(self, store: Store, writer: RowGroupWriter) -> PerProcess[RowGroupRecoder]:
        """What tasks have of it; `store` and `writer` are what this process has of the two."""
        here = partial(RowGroupRecoder, writer, store)
        return PerProcess(partial(RowGroupRecoder.open, self), here)


class RowGroupRecoder:
    """What a process recodes row groups with."""

    def __init__(self, writer: RowGroupWriter, store: Store) -> None:
        self._writer, self._codec = writer, store.codec
        self._old = CheckedStore(store, writer.layout.of_row_groups)

    @classmethod
    def open(cls, job: RecodeJob) -> RowGroupRecoder:
        """Open the old store; raises an error that names this machine if it cannot take part."""
        with taking_part():
            check_here(job.unfinished, job.version)
            writer = job.unfinished.open_writer()
        return cls(writer, job.store.open(Store.open))

    def recode(self, row_group: int) -> None:
        """Read the images of a row group of the new store, and write and commit it."""
        stored, per_image = self._old.read(self._writer.rows(row_group))
        codes = {resolution: part.astype(self._codec.dtype, copy=False) for resolution, part in stored.items()}
        write_row_group(self._writer, row_group, codes, per_image)


def recode_row_group(recoder: PerProcess[RowGroupRecoder], item: NumberedRowGroup) -> None:
    """Write and commit a row group of the new store.

    Raises `StoreError` if the old store is damaged, or if this process does not see both; `EngineError` if it has
    another version of the package.
    """
    recoder.get().recode(item.row_group)
