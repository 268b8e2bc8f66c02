"""Counts what became of tasks, for a line beside a progress bar."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Tally:
    """Counts items done and failed, attempts lost with a worker, and the workers that there are now.

    An engine counts; callers show `str(tally)`, such as `4 workers, 1 retry`, and `seconds_left`.
    """

    done: int = 0  # with a result
    failed: int = 0  # with an error of their own
    retries: int = 0  # attempts lost with a worker
    workers: int | None = None  # not known in this process
    clock: Callable[[], float] = time.monotonic  # seconds
    _started: float | None = field(default=None, init=False, repr=False)

    def start(self) -> None:
        """Begin to measure time; later calls change nothing."""
        self._started = self.clock() if self._started is None else self._started

    def count(self, *, failed: bool) -> None:
        """Count one more item that is through."""
        self.failed += failed
        self.done += not failed

    def seconds_left(self, total: int) -> float | None:
        """Return the seconds that the rest of `total` items takes at the rate so far; None before the first."""
        through = self.done + self.failed
        if self._started is None or not through:
            return None
        return (self.clock() - self._started) / through * (total - through)

    def __str__(self) -> str:
        """Say what a user should know, and nothing that did not happen.

        >>> str(Tally(workers=4, retries=1))
        '4 workers, 1 retry'
        """
        failed = [f"{self.failed:,} failed"] if self.failed else []
        workers = ["no workers"] if self.workers == 0 else _counted(self.workers or 0, "worker", "workers")
        return ", ".join([*workers, *_counted(self.retries, "retry", "retries"), *failed])


def _counted(number: int, one: str, many: str) -> list[str]:
    return [f"{number:,} {one if number == 1 else many}"] if number else []
