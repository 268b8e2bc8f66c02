"""Writes row groups in this process: the next images are read, and the last row group is written, while it computes.

images ─ read ahead ─> batches ─ coder ─> row group ─ written behind ─> committed
"""

from __future__ import annotations

import itertools
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace

from ..errors import StoreError
from ..lookahead import write_behind
from ..progress import Progress
from ..store.quantiser import check_clipped
from ..store.reader import Stored
from ..store.rowgroups import runs
from ..writing.commit import ROUNDS, is_as_committed, write_row_group
from .image_encoder import PerImage, joined
from .missing import MissingRowGroups

NAMED = 5  # row groups that an error names
GPU_WRITERS = 4  # threads that write row groups


def write_here(missing: MissingRowGroups, progress: Progress | None, *, read_back: bool = False) -> None:
    """Encode and write the row groups; raises the first error.

    With `read_back`, they are read at the end, since somebody else may be writing them yet: those that are not as
    committed are written again, and `StoreError` is raised if they never are.
    """
    for _ in range(ROUNDS):
        _write(missing, progress)
        wrong = _not_as_committed(missing) if read_back else []
        if not wrong:
            return
        missing = replace(missing)  # which asks anew what is pending
    raise StoreError(
        f"row groups {', '.join(map(str, wrong[:NAMED]))} of {missing.writer.unfinished} do not read back as they were "
        "written; check the disk"
    )


def _not_as_committed(missing: MissingRowGroups) -> list[int]:
    """Read back what was written; the row groups that are not what their digest is of, which they have no more."""
    writer = missing.writer.row_group_writer
    wrong = [row_group for row_group in missing.pending if not is_as_committed(writer, row_group)]
    for row_group in wrong:
        writer.uncommit(row_group)
    return wrong


def _write(missing: MissingRowGroups, progress: Progress | None) -> None:
    count, encoder, writer = missing.counted(progress), missing.encoder, missing.writer.row_group_writer

    def write(row_group: tuple[int, Stored, PerImage]) -> int:
        number, images = row_group[0], missing.images(row_group[0])
        names = encoder.source.names[images.start : images.stop]
        write_row_group(writer, *row_group, names, read_back=encoder.verify)
        return len(writer.rows(number))

    encoded = _encoded(missing)
    # A GPU makes row groups faster than one thread compresses them; a CPU's threads are busy.
    writers = GPU_WRITERS if encoder.batch_coder.on_gpu else 1
    # Closed at once, also on an error: their threads must not outlive the call.
    with closing(encoded), closing(write_behind(write, encoded, writers)) as written:
        for images in written:
            count(images)


def _encoded(missing: MissingRowGroups) -> Generator[tuple[int, Stored, PerImage]]:
    """Yield each row group with its numbers. Batches never cross row groups, so a resumed store has the same bytes.

    Consecutive row groups are read as one, so that files are decoded ahead across them.
    """
    encoder, writer = missing.encoder, missing.writer
    for first, last in runs(missing.pending):
        images = range(missing.images(first).start, missing.images(last).stop)
        with closing(encoder.batches(images)) as batches:
            for row_group in range(first, last + 1):
                rows = writer.rows(row_group)
                stored, per_image = joined(itertools.islice(batches, -(-len(rows) // encoder.batch_size)))
                check_clipped(writer.spec.codec, stored, f"images {rows.start} to {rows.stop - 1}")
                yield row_group, stored, per_image
