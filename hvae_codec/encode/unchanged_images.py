"""Whether images are still those whose row groups an interrupted encode has committed: a store is made of one state.

unfinished store  checksum[rows] ──┐
                                   ├── check_unchanged ──> nothing, or an error that names an image
source            checksums(rows) ─┘
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ..data.content import content_checksums
from ..data.sources import ImageSource
from ..errors import DataError, StoreError
from ..progress import Progress
from ..store.damage import UnreadableError, reading
from ..store.reader import Store
from ..store.schema import CHECKSUM
from ..store.workers import Worker
from ..store.writer import StoreWriter


def committed_rows(writer: StoreWriter) -> NDArray[np.int64]:
    """Numbers of the images whose row groups are committed, of all workers, int64, ascending."""
    images, groups = np.arange(len(writer.spec.names)), np.arange(writer.row_groups)
    committed = ~np.isin(groups, writer.pending())
    return images[committed[images // writer.spec.row_group_size]]


class ChangedImageError(DataError):
    """An image was changed while a store of it was being written, by several calls."""


def check_unchanged(
    writer: StoreWriter,
    source: ImageSource,
    rows: Iterable[int] | None = None,
    start: int = 0,
    *,
    check: bool = False,
    progress: Progress | None = None,
) -> None:
    """Raise `ChangedImageError` that names an image of `rows` whose bytes are not those that were encoded.

    `rows` are numbers of images in the unfinished store (default: this worker's), of which those are looked at that are
    committed and come from `source`, whose first image has the number `start`. For `check` and `progress` see
    `content_checksums`. `StoreError` if the checksums in the unfinished store cannot be read. A store of a version
    below 4 has none: nothing is raised.
    """
    if not writer.spec.has_records:
        return
    wanted = committed_rows(writer)
    if rows is None:
        wanted = wanted[wanted // writer.spec.row_group_size % writer.worker.count == writer.worker.number]
    else:
        wanted = np.intersect1d(np.fromiter(rows, np.int64), wanted)
    wanted = wanted[(wanted >= start) & (wanted < start + len(source))]
    stored = _stored_checksums(writer, wanted)
    found = content_checksums(source, wanted - start, check=check, progress=progress)
    changed = (wanted - start)[stored != found]
    if len(changed):
        more = f" and {len(changed) - 1:,} others were" if len(changed) > 1 else " was"
        raise ChangedImageError(
            f"{source.names[changed[0]]}{more} changed since an encode that did not finish stored the image; put back "
            f"what it was, or begin anew: remove {writer.unfinished}, or encode with --overwrite"
        )


def check_unchanged_since(
    store: Store,
    source: ImageSource,
    worker: Worker,
    start: int = 0,
    *,
    check: bool = False,
    progress: Progress | None = None,
) -> None:
    """Raise `ChangedImageError` if an image of `worker` was changed since the finished store was written.

    The store has `source` from its row `start` on; for `check` and `progress` see `content_checksums`.
    """
    if store.checksums is None:
        return
    rows = np.arange(start, start + len(source))
    rows = rows[rows // store.row_groups.size % worker.count == worker.number]
    changed = rows[store.checksums[rows] != content_checksums(source, rows - start, check=check, progress=progress)]
    if len(changed):
        raise ChangedImageError(
            f"{store.path} is finished, and {source.names[changed[0] - start]} was changed since; remove the store to "
            "encode it again, or let sync encode what has changed"
        )


def _stored_checksums(writer: StoreWriter, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Checksums in the unfinished store, int64 [len(rows)], read row group by row group."""
    array, found = writer.row_group_writer.array(CHECKSUM), np.empty(len(rows), np.int64)
    of = rows // writer.spec.row_group_size
    for row_group in np.unique(of).tolist():
        images = writer.rows(row_group)
        try:
            values = reading(lambda images=images: np.asarray(array[images.start : images.stop]))
        except UnreadableError as error:
            problem = f"{writer.unfinished / CHECKSUM / 'c' / str(row_group)} {error}"
            raise StoreError(f"{problem}; remove the unfinished store and encode again") from None
        found[of == row_group] = values[rows[of == row_group] - images.start]
    return found
