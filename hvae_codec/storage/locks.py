"""A lock between processes, which vanishes with the process that has it, however that ends."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

_POLL = 0.01  # seconds between two looks at a lock that is waited for
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # what some network file systems answer


@contextlib.contextmanager
def waiting_lock(file: Path) -> Iterator[None]:
    """Held: the lock of `file`, once no other process has it."""
    lock = ProcessLock(file)
    lock.acquire(wait=True)
    try:
        yield
    finally:
        lock.remove()


class ProcessLock:
    """The lock of a file. On a file system that has no locks, everybody gets it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = FileLock(file, mode=0o666, thread_local=False, fallback_to_soft=False)

    def acquire(self, *, wait: bool = False) -> bool:
        """Take the lock; the file and its folder are created. False if another process has it; `wait` waits for that.

        Raises `OSError` if the file cannot be written.
        """
        while True:
            try:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                self._lock.acquire(timeout=-1 if wait else 0, poll_interval=_POLL)
            except Timeout:
                return False
            except (FileNotFoundError, FileExistsError):
                if self.file.parent.parent.is_dir() and not os.path.lexists(self.file.parent):
                    continue  # the last process has just removed the folder
                raise
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
            return True

    def release(self) -> None:
        """Let others have it."""
        self._lock.release()

    def remove(self) -> None:
        """Let others have it, and remove its file."""
        with contextlib.suppress(OSError):  # Windows removes no open file; there the library does it afterwards
            self.file.unlink()  # first: whoever locks this file afterwards sees that it has lost its name
        self.release()

    def is_taken(self) -> bool:
        """Whether another process has the lock; removes what a killed one has left of it."""
        if not self.file.exists():
            return False
        if not self.acquire():
            return True
        self.remove()
        return False


def remove_empty(folder: Path) -> None:
    """Remove a folder of locks if none is in it."""
    with contextlib.suppress(OSError):  # others are there
        folder.rmdir()
