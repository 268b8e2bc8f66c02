"""What became of an item, and whose fault an error is: the item's, its worker's, or everyone's."""

from __future__ import annotations

import errno
import sys
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..errors import DataError, EngineError, HvaeCodecError

Item = TypeVar("Item")
Result = TypeVar("Result")

SENTENCES = (HvaeCodecError, OSError)
"""Errors that a user sees as one sentence; where they were raised is of no interest."""

_EVERYWHERE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""A full or read-only disk fails every other item, too, after all its work."""


class WorkerEnded(Exception):  # noqa: N818 - what happened to a worker, not an error of the task
    """The process that ran a task ended, and nothing else did; says how, such as `signal 9`."""


@dataclass(frozen=True)
class Outcome(Generic[Item, Result]):
    """What became of one item: its result, or the error of its own that it ended with."""

    number: int  # from 0, in the order of the items
    item: Item  # what was asked for
    result: Result | None = None  # what the work returned
    error: Exception | None = None  # the item's own error; None if it has a result
    attempts: int = 1  # how often it was tried, with those lost with a worker

    def get(self) -> Result:
        """Return the result; raises the error if there is one."""
        if self.error is not None:
            raise self.error
        return self.result  # type: ignore[return-value] # None is then what the work returned


def is_of_one_item(error: BaseException) -> bool:
    """Whether other items may well succeed: the data of this one, or its file, are at fault."""
    return isinstance(error, DataError) or (isinstance(error, OSError) and error.errno not in _EVERYWHERE)


def deaths(error: BaseException) -> int:
    """Return how many workers ended while they ran the task that `error` comes from; 0 if it means another thing.

    Dask sends a task whose worker died to others by itself, and only then says so.
    """
    if isinstance(error, WorkerEnded | BrokenExecutor):
        return 1
    dask = sys.modules.get("distributed")  # not imported: whoever runs tasks on Dask has imported it
    if dask is not None and isinstance(error, dask.KilledWorker):
        return int(error.allowed_failures) + 1
    return 0


def without_traceback(error: BaseException) -> BaseException:
    """Return `error`; one of `SENTENCES` without the frames, and the memory, of where it was raised."""
    if isinstance(error, SENTENCES):
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)
    return error


def culprit_error(name: str, attempts: int, how: str) -> EngineError:
    """Make the error of an item that ends each worker that it is given to.

    >>> str(culprit_error("row group 17", 3, "signal 9"))
    'row group 17 ended its worker three times (signal 9); look at its data, or give each worker more memory'
    """
    times = {1: "once", 2: "twice", 3: "three times"}.get(attempts, f"{attempts} times")
    why = f" ({how})" if how else ""
    return EngineError(f"{name} ended its worker {times}{why}; look at its data, or give each worker more memory")
