"""Who writes which row groups if several processes write one store: shards are owned, never shared.

    row group    0    1    2    3    4    5    6
    worker      0/3  1/3  2/3  0/3  1/3  2/3  0/3

Two writers of one shard would lose images of each other, so two processes that own a row group in common may not write
at the same time; a lock tells them apart.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import StoreError, UsageError
from ..storage.locks import TakenError, exclusive_lock, remove_empty, waiting_lock


@dataclass(frozen=True)
class Worker:
    """One of the processes that write a store; `Worker()` is one alone, which owns everything."""

    number: int = 0  # from 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.count:
            every = "0/1" if self.count <= 1 else f"0/{self.count} to {self.count - 1}/{self.count}"
            raise UsageError(f"there is no worker {self}; workers are counted from 0, so give {every}")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Worker:
        """The worker k/n; `UsageError` if `text` is none.

        >>> Worker.parse("1/4")
        Worker(number=1, count=4)
        """
        if not (match := re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)):
            raise UsageError(f"the worker is {text!r}; give its number, from 0, and how many there are, such as 0/4")
        return cls(*map(int, match.groups()))

    def owns(self, row_group: int) -> bool:
        """Whether this worker is the one that writes a row group."""
        return row_group % self.count == self.number

    def shares_with(self, other: Worker) -> bool:
        """Whether a store, however long, has row groups that both own.

        >>> Worker(1, 4).shares_with(Worker(3, 6)), Worker(1, 4).shares_with(Worker(2, 6))
        (True, False)
        """
        return (self.number - other.number) % math.gcd(self.count, other.count) == 0


@contextmanager
def write_lock(path: Path, worker: Worker) -> Iterator[None]:
    """Held while `worker` writes the store of `path`, however the process ends.

    Raises `StoreError` if a process writes that owns row groups in common with `worker`, or if nothing can be written
    beside `path`. Locks are files of the folder PATH.locks, beside the store, which the last process to leave removes.
    """
    name = f"{worker.number}-of-{worker.count}"
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive_lock(lock_folder(path), name, lambda other: _shares(worker, other)))
        except TakenError as taken:
            other = str(taken).replace("-of-", "/")
            who = "another process" if other == "0/1" else f"worker {other}, another process"
            raise StoreError(f"{path} is being written by {who}; wait for it or stop it") from None
        except (FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
            raise StoreError(f"{path} cannot be written ({error.strerror}); give another location") from None
        yield


def _shares(worker: Worker, lock: str) -> bool:
    """Whether a lock is that of a worker that owns row groups in common with `worker`."""
    match = re.fullmatch(r"(\d+)-of-(\d+)", lock)
    return match is not None and worker.shares_with(Worker(*map(int, match.groups())))


@contextmanager
def publish_lock(path: Path) -> Iterator[None]:
    """Held for the moment in which one process gives a store the name `path`, or repairs that; others wait."""
    with waiting_lock(lock_folder(path) / "publish"):
        yield
    remove_empty(lock_folder(path))


def lock_folder(path: Path) -> Path:
    """Where the locks of the store of `path` are."""
    return path.with_name(path.name + ".locks")


def remove_locks(path: Path) -> None:
    """Remove what killed processes left, once the store is published; living ones keep their locks without files."""
    shutil.rmtree(lock_folder(path), ignore_errors=True)
