"""Writes a row group so that its digest is that of what is there, whoever else writes it at the same time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import StoreError
from ..store.reader import Stored
from ..store.row_group_writer import RowGroupWriter
from ..verification.verify import check_written

ATTEMPTS = 3
"""How often a row group is written that another process writes, too, with other numbers."""

ROUNDS = 3
"""How often row groups are written that do not read back as committed."""


def write_row_group(
    writer: RowGroupWriter,
    row_group: int,
    stored: Stored,
    per_image: Mapping[str, np.ndarray],
    names: Sequence[str] | None = None,
    *,
    read_back: bool = False,
) -> None:
    """Write and commit a row group; one that was committed before, or if `read_back`, is read back.

    Raises what `RowGroupWriter.write` does, and `StoreError` if what is read back is not what was written.
    """
    for _ in range(ATTEMPTS):
        is_first = writer.write(row_group, stored, per_image, names)
        if is_first and not read_back:
            return
        try:
            check_written(writer, row_group)
            return
        except StoreError:
            if is_first:
                raise
        writer.uncommit(row_group)  # another's digest, and now our numbers
    raise StoreError(
        f"another process writes row group {row_group} of {writer.unfinished} again and again; stop it, and run the "
        "same command again"
    )


def is_as_committed(writer: RowGroupWriter, row_group: int) -> bool:
    """Whether a row group that was written reads back as what its digest is of."""
    try:
        check_written(writer, row_group)
    except StoreError:
        return False
    return True
