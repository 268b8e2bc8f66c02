"""Who writes which row groups where several processes write one store: shards are owned, never shared.

    row group    0    1    2    3    4    5    6
    worker      0/3  1/3  2/3  0/3  1/3  2/3  0/3

Two writers of one shard would lose images of each other, so two processes that own a row group in common may not write
at the same time; a lock tells them apart.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import StoreError, UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Worker:
    """One of the processes that write a store; `Worker()` is one alone, which owns everything."""

    number: int = 0
    """From 0."""
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.count:
            every = "0/1" if self.count <= 1 else f"0/{self.count} to {self.count - 1}/{self.count}"
            raise UsageError(f"there is no worker {self}; workers are counted from 0, so give {every}")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Worker:
        """The worker k/n; `UsageError` where `text` is none.

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
    """Held while `worker` writes the store of `path`, however the process ends: the system lets go of it.

    Raises `StoreError` where a process writes that owns row groups in common with `worker`, or where nothing can be
    written beside `path`. Locks are files of the folder PATH.locks, beside the store, which the last process to leave
    removes. Where the system or the file system has no such locks, this does nothing.
    """
    if fcntl is None:
        yield
        return
    folder = lock_folder(path)
    own = folder / _lock_name(worker)
    try:
        descriptor = _locked(own)
    except (NotADirectoryError, FileNotFoundError, PermissionError) as error:
        raise StoreError(f"{path} cannot be written ({error.strerror}); give another place") from None
    if descriptor is None:
        raise _taken(path, worker)
    try:
        for other in _others(folder, worker):
            if _is_held(folder / _lock_name(other)):
                raise _taken(path, other)
        yield
    finally:
        own.unlink(missing_ok=True)
        os.close(descriptor)
        with contextlib.suppress(OSError):  # others are there
            folder.rmdir()


@contextmanager
def publish_lock(path: Path) -> Iterator[None]:
    """Held for the moment in which one process gives a store the name `path`, or mends that; others wait.

    A file, since network file systems do not lock folders. Does nothing where the system has no such locks.
    """
    if fcntl is None:
        yield
        return
    own = lock_folder(path) / "publish"
    descriptor = _locked(own, wait=True)
    try:
        yield
    finally:
        own.unlink(missing_ok=True)
        if descriptor is not None:
            os.close(descriptor)
        with contextlib.suppress(OSError):  # others are there
            own.parent.rmdir()


def lock_folder(path: Path) -> Path:
    """Where the locks of the store of `path` are."""
    return path.with_name(path.name + ".locks")


def remove_locks(path: Path) -> None:
    """Remove the locks of killed processes; those of living ones stay locked without their files, which is harmless.

    For who has published the store: nobody has anything left to write.
    """
    shutil.rmtree(lock_folder(path), ignore_errors=True)


def _taken(path: Path, worker: Worker) -> StoreError:
    who = "another process" if worker.count == 1 else f"worker {worker}, another process"
    return StoreError(f"{path} is being written by {who}; wait for it or stop it")


def _lock_name(worker: Worker) -> str:
    return f"{worker.number}-of-{worker.count}"


def _others(folder: Path, worker: Worker) -> list[Worker]:
    """Workers with lock files, held or left over, that own row groups in common with `worker`."""
    found = (re.fullmatch(r"(\d+)-of-(\d+)", entry.name) for entry in folder.iterdir())
    workers = (Worker(*map(int, match.groups())) for match in found if match)
    return [other for other in workers if other != worker and worker.shares_with(other)]


def _locked(file: Path, wait: bool = False) -> int | None:
    """Descriptor of the locked `file`, made where it is missing; None where another process holds it.

    With `wait`, this waits for that process instead.
    """
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(file, os.O_CREAT | os.O_RDWR, 0o666)
        except FileNotFoundError:  # the last process has just removed the folder
            continue
        if not _try_lock(descriptor, wait):
            os.close(descriptor)
            return None
        if _is_file_of(descriptor, file):
            return descriptor
        os.close(descriptor)  # its holder removed the file as it left: a lock on it keeps nobody out


def _is_held(file: Path) -> bool:
    try:
        descriptor = os.open(file, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _is_file_of(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _try_lock(descriptor: int, wait: bool = False) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # some network file systems
        return True
    return True
