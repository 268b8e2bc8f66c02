"""Sends the row groups that a store lacks to workers, whoever they are, and sees to it that all of them are right.

    pending ── a few a worker under way ──> work(item) ──> committed
       ^                                          └─ its data are bad, or it ends its workers ──> told at the end
       └── read back, and not as committed ──┘

Whoever has a driver holds the store's lock, and is the only one that creates and publishes it. A worker that was only
thought dead may write a row group that another one has written, too; so those that were given to two are read back.
After a code that is too large for its array no more row groups are sent; it is raised when those under way have ended,
so that nobody writes any more.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar, cast

from ..engine.engine import Engine
from ..engine.outcomes import Outcome
from ..engine.per_process import PerProcess
from ..engine.taking_part import taking_part
from ..engine.tally import Tally
from ..errors import StoreError
from ..progress import Progress
from ..store.narrowing import CodeRangeError
from ..store.row_group_writer import RowGroupWriter
from ..store.unfinished_reference import UnfinishedReference
from .commit import ROUNDS, is_as_committed
from .pending import PendingRowGroups

NAMED = 5
"""Row groups whose errors are told; the others are counted."""


class RowGroupItem(Protocol):
    """What a task is told of its row group; as a string its name."""

    @property
    def row_group(self) -> int:
        """Its number."""


@dataclass(frozen=True)
class NumberedRowGroup:
    """A row group of which a task needs to know the number alone."""

    row_group: int

    def __str__(self) -> str:
        return f"row group {self.row_group}"


Item = TypeVar("Item", bound=RowGroupItem)
Result = TypeVar("Result")


@dataclass(frozen=True)
class RowGroupTasks(Generic[Item, Result]):
    """How the row groups of a store are written, each by a stateless and idempotent task."""

    work: Callable[[Item], Result | CodeRangeError]  # writes and commits the row group of an item; picklable
    item: Callable[[int], Item]  # made when the row group of this number is sent
    note: Callable[[int, Result], None] = lambda row_group, result: None  # called with what a task has returned


class Driver(Generic[Item, Result]):
    """Has the row groups of one store written by the tasks of an engine."""

    def __init__(
        self,
        missing: PendingRowGroups,
        tasks: RowGroupTasks[Item, Result],
        engine: Engine,
        tally: Tally | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._missing, self._tasks, self._engine, self._tally = missing, tasks, engine, tally or Tally()
        self._writer = missing.writer.row_group_writer
        self._reader = PerProcess(partial(_opened, UnfinishedReference.of(self._writer)), lambda: self._writer)
        self._count = missing.counted(progress)
        self._failed: dict[int, Exception] = {}
        self._too_large: CodeRangeError | None = None

    def write(self, *, read_back_all: bool = False) -> None:
        """Write all that is missing; what may have been written twice is read back, or everything.

        Everything if an earlier run is continued, or if the engine does not count what it tries again: a worker that
        was taken for dead between its last look for a digest and its write leaves other numbers under a digest that was
        there before, and nobody knows of which row group.
        Raises `StoreError` if row groups could not be written, and names them: all others are there by then;
        `CodeRangeError` if an array has no room for a code.
        """
        read_back_all |= self._engine.may_repeat
        row_groups: Sequence[int] = self._missing.pending
        for _ in range(ROUNDS):
            suspects = self._send(row_groups)
            wrong = self._not_as_committed(row_groups if read_back_all and not self._too_large else suspects)
            if self._too_large:
                raise self._too_large
            row_groups = wrong
            if not row_groups:
                break
        else:
            problem = StoreError("it does not read back as it was written; check the disk")
            self._failed |= dict.fromkeys(row_groups, problem)
        if self._failed:
            raise self._error()

    def _send(self, row_groups: Sequence[int]) -> list[int]:
        """Have row groups written; those that more than one worker may have written."""
        wanted = itertools.takewhile(lambda _: self._too_large is None, row_groups)
        items: Iterator[Item] = map(self._tasks.item, wanted)
        with closing(self._engine.run(self._tasks.work, items, tally=self._tally)) as outcomes:
            return [outcome.item.row_group for outcome in outcomes if self._is_suspect(outcome)]

    def _is_suspect(self, outcome: Outcome[Item, Result | CodeRangeError]) -> bool:
        """Note what became of a row group; whether more than one worker may have written it."""
        row_group = outcome.item.row_group
        if outcome.error is not None and not self._writer.digest(row_group):
            self._failed[row_group] = outcome.error
            self._count(0)
            return False
        if isinstance(outcome.result, CodeRangeError):
            self._too_large = self._too_large or outcome.result
            return False
        if outcome.error is None:
            self._tasks.note(row_group, cast(Result, outcome.result))
        self._count(len(self._writer.rows(row_group)))
        return outcome.attempts > 1

    def _not_as_committed(self, row_groups: Sequence[int]) -> list[int]:
        """Read back row groups; those that are not what their digest is of, which they have no more."""
        written = [r for r in row_groups if r not in self._failed]
        right = self._engine.map(partial(_is_as_committed, self._reader), written)
        wrong = [r for r, is_right in zip(written, right, strict=True) if not is_right]
        for row_group in wrong:
            self._writer.uncommit(row_group)
            self._count(-len(self._writer.rows(row_group)))
        return wrong

    def _error(self) -> StoreError:
        """Say which row groups are missing, and why."""
        told = [f"row group {r} ({self._rows(r)}): {error}" for r, error in sorted(self._failed.items())]
        more = f"; and {len(told) - NAMED:,} more" if len(told) > NAMED else ""
        return StoreError(
            f"{len(told):,} of {self._missing.writer.row_groups:,} row groups could not be written, so "
            f"{self._missing.writer.unfinished} stays unfinished: {'; '.join(told[:NAMED])}{more}; when that "
            "is mended, the same command writes the rest"
        )

    def _rows(self, row_group: int) -> str:
        rows = self._writer.rows(row_group)
        return f"images {rows.start} to {rows.stop - 1}"


def _opened(store: UnfinishedReference) -> RowGroupWriter:
    with taking_part():
        return store.open_writer()


def _is_as_committed(opened: PerProcess[RowGroupWriter], row_group: int) -> bool:
    return is_as_committed(opened.get(), row_group)
