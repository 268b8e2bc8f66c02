"""A store in another packing, other types of codes or other pieces: lossless, without images and without a model.

a.zarr ── row group read and compared with its digest ── packed anew ──> b.zarr.partial ── renamed ──> b.zarr
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from ..engine.engine import Engine
from ..engine.given import Executors, given_engine
from ..engine.tally import Tally
from ..errors import UsageError
from ..progress import Progress
from ..storage.location import Location, LocationLike, location_of, real_path
from ..store.open_writer import check_location, create_or_resume, locked
from ..store.reader import Store
from ..store.unfinished_reference import UnfinishedReference
from ..store.workers import Worker
from ..store.writer import StoreWriter
from ..verification.same_store import StoreReference
from .additions import added_to
from .checked_store import check_not_replaced
from .code_ranges import code_ranges
from .driver import Driver, NumberedRowGroup, RowGroupTasks
from .pending import PendingRowGroups
from .recode_spec import Changes, CodeBits, recoded_spec
from .recode_task import RecodeJob, recode_row_group


def recode(
    path: LocationLike,
    out: LocationLike,
    *,
    packing: str | None = None,
    code_bits: CodeBits | None = None,
    chunk_bytes: int | None = None,
    row_group_size: int | None = None,
    overwrite: bool = False,
    engine: Engine | None = None,
    executor: Executors | None = None,
    tally: Tally | None = None,
    measuring: Progress | None = None,
    progress: Progress | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> Store:
    """Write the store at `path` once more, at `out`, with the same latents, tables and model; returns the new one.

    packing: how chunks of codes are packed: zstd, archive, or blosc, which format versions 1 to 4 have; None: as they
        are, but zstd for stores of these versions
    code_bits: 8 or 16, or auto: 8 in the arrays whose codes fit; None: as they are, but auto for versions 1 to 4
    chunk_bytes: uncompressed bytes that a chunk of two images or more does not exceed; None: as it is
    row_group_size: images in a row group; None: as it is
    overwrite: whether a store at `out` is replaced

    Both are folders or URLs. Each row group is compared with its digest when it is read. Killed at any moment, the same
    call continues. If codes must be looked at first, `measuring` is called with the images done and those in all;
    `progress` with the images written. Row groups are read and written by `engine` or on an `executor`, which `tally`
    counts for: by this process if neither is given. `on_warning` is called with a sentence if a user has added
    something to the old store, which the new one has not (it logs by default). A store of floats can have other pieces
    alone. Raises `StoreError` if there is no store, it is unfinished or damaged, or `out` exists; `UsageError` if one
    store would be in the other or in its place, codes do not fit into `code_bits`, or an argument is out of range.
    """
    changes = Changes(packing=packing, code_bits=code_bits, chunk_bytes=chunk_bytes, row_group_size=row_group_size)
    location, target = location_of(path), location_of(out)
    _check_apart(location, target)
    check_location(target, overwrite)
    store = Store.open(location)
    lost = added_to(store)
    with given_engine(engine, executor) as used, locked(target, Worker()):
        ranges = partial(code_ranges, store, engine=used, tally=tally, progress=measuring)
        spec = recoded_spec(store, changes, ranges)
        writer, is_begun = create_or_resume(target, spec, overwrite, Worker(), same_types=True)
        _driver(store, writer, used, tally, progress).write(read_back_all=is_begun)
        check_not_replaced(store)
        writer.publish()
    if lost:
        warn = on_warning or logging.getLogger(__name__).warning
        warn(f"{target} lacks what was added to {location}: {', '.join(lost)}")
    return Store.open(target)


def _driver(
    store: Store, writer: StoreWriter, engine: Engine, tally: Tally | None, progress: Progress | None
) -> Driver[NumberedRowGroup, None]:
    own = writer.row_group_writer
    job = RecodeJob(StoreReference.of(store), UnfinishedReference.of(own))
    tasks = RowGroupTasks(partial(recode_row_group, job.recoder(store, own)), NumberedRowGroup)
    return Driver(PendingRowGroups(writer), tasks, engine, tally, progress)


def _check_apart(location: Location, target: Location) -> None:
    """Raise `UsageError` if the new store would be in the place of the old one, inside of it, or around it."""
    if type(location) is type(target) and real_path(location) == real_path(target):
        raise UsageError(f"{target} is the store itself; give the new one another name")
    if location.contains(target):
        raise UsageError(f"{target} is inside of the store; give a name beside it")
    if target.contains(location):
        raise UsageError(f"the store {location} is inside of {target}; give another name")
