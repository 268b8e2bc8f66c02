"""The row groups that an unfinished store lacks, and the images of a source that they are of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from ..progress import Progress
from ..store.writer import StoreWriter
from .image_encoder import ImageEncoder


@dataclass(frozen=True)
class MissingRowGroups:
    """What is left to write for the writer's worker, as of when it was first asked."""

    writer: StoreWriter
    encoder: ImageEncoder
    start: int = 0  # number of the encoder's first image in the store, which may hold others before it

    @property
    def _first(self) -> int:
        return -(-self.start // self.writer.spec.row_group_size)

    @cached_property
    def pending(self) -> list[int]:
        """Row groups that were not committed, ascending; those that have no other images than the encoder's."""
        return [r for r in self.writer.own_pending() if r >= self._first]

    def images(self, row_group: int) -> range:
        """Numbers of a row group's images among the encoder's."""
        rows = self.writer.rows(row_group)
        return range(rows.start - self.start, rows.stop - self.start)

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
