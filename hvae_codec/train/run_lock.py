"""One training at a time in the folder of a run: the same command typed twice must not write the same files twice."""

from __future__ import annotations

from pathlib import Path

from ..errors import ModelError
from ..storage.locks import ProcessLock

LOCK_FILE = ".lock"


class RunLock:
    """Held from `acquire` until `release`, or until the process ends, however it does."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._lock = ProcessLock(run / LOCK_FILE)

    def acquire(self) -> None:
        """Raises `ModelError` if another process trains this run."""
        if not self._lock.acquire():
            raise ModelError(f"{self._run} is being trained by another process; wait for it or stop it")

    def release(self) -> None:
        """Let others have it."""
        self._lock.release()
