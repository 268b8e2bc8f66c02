"""Sends the row groups that a store lacks to workers, whoever they are, and sees to it that all of them are right.

    missing ── a few a worker under way ──> encode_row_group ──> committed
       ^                                          └─ its images are bad, or it ends its workers ──> told at the end
       └── read back, and not as committed ──┘

It holds the store's lock, and is the only one that creates and publishes it. A worker that was only thought dead may
write a row group that another one has written, too; so those that were given to two are read back. After a code that is
too large for its array no more row groups are sent; it is raised when those under way have ended, so that nobody writes
any more.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ..data.seen import Seen
from ..engine.engine import Engine
from ..engine.outcomes import Outcome
from ..engine.per_process import PerProcess
from ..engine.taking_part import taking_part
from ..engine.tally import Tally
from ..errors import StoreError
from ..model.reference import ModelSource
from ..progress import Progress
from ..store.narrowing import CodeRangeError
from ..store.row_group_writer import RowGroupWriter
from ..store.unfinished_reference import UnfinishedReference
from .commit import ROUNDS, is_as_committed
from .job import EncodeJob, RowGroupImages, encode_row_group
from .missing import MissingRowGroups

NAMED = 5
"""Row groups whose errors are told; the others are counted."""


@dataclass(frozen=True)
class Workers:
    """Who encodes row groups."""

    engine: Engine
    device: str = "auto"  # where each computes: cpu, cuda, or auto, a GPU if it has one
    tally: Tally = field(default_factory=Tally)  # counts row groups, workers and retries


def job_of(missing: MissingRowGroups, model: ModelSource, device: str) -> EncodeJob:
    """Make what the tasks have in common that encode as the given encoder does."""
    encoder = missing.encoder
    return EncodeJob(
        model=model,
        store=UnfinishedReference.of(missing.writer.row_group_writer),
        batch_size=encoder.batch_size,
        evaluate=encoder.evaluate,
        seed=encoder.seed,
        verify=encoder.verify,
        checksums=encoder.checksums,
        device=device,
        graph=encoder.coder.model.recording.wanted,
    )


class Driver:
    """Has the row groups of one encode or append written by workers."""

    def __init__(
        self, missing: MissingRowGroups, model: ModelSource, workers: Workers, progress: Progress | None = None
    ) -> None:
        self._missing, self._workers = missing, workers
        job = job_of(missing, model, workers.device)
        self._work = partial(encode_row_group, job.encoder)
        self._writer = missing.writer.row_group_writer
        self._reader = PerProcess(partial(_opened, job.store), lambda: self._writer)
        self._count = missing.counted(progress)
        self._failed: dict[int, Exception] = {}
        self._too_large: CodeRangeError | None = None

    def write(self, *, read_back_all: bool = False) -> None:
        """Write all that is missing; what may have been written twice is read back, or everything.

        That is so, too, if the engine does not count what it tries again.
        Raises `StoreError` if row groups could not be written, and names them: all others are there by then;
        `CodeRangeError` if an array has no room for a code.
        """
        read_back_all |= self._workers.engine.may_repeat
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
        """Have row groups encoded; those that more than one worker may have written."""
        images, tally = self._images(row_groups), self._workers.tally
        with closing(self._workers.engine.run(self._work, images, tally=tally)) as outcomes:
            return [outcome.item.row_group for outcome in outcomes if self._is_suspect(outcome)]

    def _images(self, row_groups: Sequence[int]) -> Iterator[RowGroupImages]:
        """Make the images of each row group when it is sent, until a code is too large."""
        source = self._missing.encoder.source
        for row_group in itertools.takewhile(lambda _: self._too_large is None, row_groups):
            yield RowGroupImages(row_group, source.portion(np.array(self._missing.images(row_group))))

    def _is_suspect(self, outcome: Outcome[RowGroupImages, Seen | CodeRangeError]) -> bool:
        """Note what became of a row group; whether more than one worker may have written it."""
        row_group = outcome.item.row_group
        if outcome.error is not None and not self._writer.digest(row_group):
            self._failed[row_group] = outcome.error
            self._count(0)
            return False
        if isinstance(outcome.result, CodeRangeError):
            self._too_large = self._too_large or outcome.result
            return False
        images = self._missing.images(row_group)
        if outcome.result is not None:
            self._missing.encoder.source.note(np.array(images), outcome.result)
        self._count(len(images))
        return outcome.attempts > 1

    def _not_as_committed(self, row_groups: Sequence[int]) -> list[int]:
        """Read back row groups; those that are not what their digest is of, which they have no more."""
        written = [r for r in row_groups if r not in self._failed]
        right = self._workers.engine.map(partial(_is_as_committed, self._reader), written)
        wrong = [r for r, is_right in zip(written, right, strict=True) if not is_right]
        for row_group in wrong:
            self._writer.uncommit(row_group)
            self._count(-len(self._missing.images(row_group)))
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
        rows = self._missing.writer.rows(row_group)
        return f"images {rows.start} to {rows.stop - 1}"


def _opened(store: UnfinishedReference) -> RowGroupWriter:
    with taking_part():
        return store.open_writer()


def _is_as_committed(opened: PerProcess[RowGroupWriter], row_group: int) -> bool:
    return is_as_committed(opened.get(), row_group)
