"""The row groups that an unfinished store lacks, and the images of a source that they are of."""

from __future__ import annotations

from dataclasses import dataclass

from ..writing.pending import PendingRowGroups
from .image_encoder import ImageEncoder


@dataclass(frozen=True)
class MissingRowGroups(PendingRowGroups):
    """What is left to encode: `start` is the number of the encoder's first image in the store."""

    encoder: ImageEncoder

    def images(self, row_group: int) -> range:
        """Numbers of a row group's images among the encoder's."""
        rows = self.writer.rows(row_group)
        return range(rows.start - self.start, rows.stop - self.start)
