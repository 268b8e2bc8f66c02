"""One training at a time in the folder of a run: the same command typed twice must not write the same files twice."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from ..errors import ModelError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"


class RunLock:
    """Held from `acquire` until `release`, or until the process ends, however it does: the system lets go of it.

    Where the system or the file system has no such locks, this does nothing.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._file: IO[bytes] | None = None

    def acquire(self) -> None:
        """Raises `ModelError` where another process trains this run."""
        if fcntl is None:
            return
        file = open(self._run / LOCK_FILE, "ab")  # noqa: SIM115 - held open until it is released
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise ModelError(f"{self._run} is being trained by another process; wait for it or stop it") from None
        except OSError:  # some network file systems
            pass
        self._file = file

    def release(self) -> None:
        """Let others have it."""
        if self._file is not None:
            self._file.close()
            self._file = None
