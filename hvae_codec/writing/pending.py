"""The row groups that an unfinished store lacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from ..progress import Progress
from ..store.writer import StoreWriter


@dataclass(frozen=True)
class PendingRowGroups:
    """What is left to write for the writer's worker, as of when it was first asked."""

    writer: StoreWriter
    start: int = field(default=0, kw_only=True)  # images that others write: those of the first row groups

    @property
    def _first(self) -> int:
        return -(-self.start // self.writer.spec.row_group_size)

    @cached_property
    def pending(self) -> list[int]:
        """Row groups that were not committed, ascending; those that have no image before `start`."""
        return [r for r in self.writer.own_pending() if r >= self._first]

    def counted(self, progress: Progress | None) -> Callable[[int], None]:
        """Make what takes numbers of images that were written just now, and tells `progress` how many are done."""
        owned = filter(self.writer.worker.owns, range(self._first, self.writer.row_groups))
        total = sum(len(self.writer.rows(r)) for r in owned)
        done = total - sum(len(self.writer.rows(r)) for r in self.pending)

        def count(images: int) -> None:
            nonlocal done
            done += images
            if progress is not None:
                progress(done, total)

        return count
