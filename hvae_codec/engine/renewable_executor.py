"""An executor that is made again if it breaks, and says how many tasks it runs at once."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from typing import Any

from ..errors import EngineError, HvaeCodecError, UsageError
from .outcomes import Item, Result

_SECONDS = 2.0
"""How long a number of slots is believed: workers of a cluster come and go."""


class RenewableExecutor:
    """An executor, or those that a function makes: a new one in place of one that broke.

    executor: an executor, which stays open; or a function that makes one, which `close` shuts down
    slots: how many tasks run at once, if the executor does not say
    place: what errors call it
    """

    def __init__(
        self,
        executor: Executor | Callable[[], Executor],
        slots: int | Callable[[], int] | None = None,
        place: str = "the executor",
    ) -> None:
        self._make = _maker(executor)
        self._executor: Any = executor if self._make is None else self._make()
        self._is_broken = False
        self._slots = slots
        self._known: tuple[float, int] = (0.0, 0)
        self.place = place

    @property
    def slots(self) -> int:
        """How many tasks run at once. Raises `EngineError` if a cluster has been lost."""
        until, count = self._known
        if time.monotonic() >= until:
            count = self._count()
            self._known = time.monotonic() + _SECONDS, count
        return count

    def _count(self) -> int:
        if self._slots is not None:
            return self._slots() if callable(self._slots) else self._slots
        count = slots_of(self._executor)
        if count is None:
            raise self.lost()
        return count

    def submit(self, work: Callable[[Item], Result], item: Item) -> Future[Result]:
        """Send a task. Raises `EngineError` if the executor takes none, `BrokenExecutor` if it has just broken."""
        if self._is_broken:
            self._renew()
        try:
            return self._executor.submit(work, item)
        except (BrokenExecutor, HvaeCodecError):
            raise
        except Exception as error:
            if not _is_shut_down(error):
                raise
            raise EngineError(f"{self.place} takes no tasks ({error}); give one that is open") from None

    def broken(self, suspects: Sequence[str]) -> None:
        """Note that the executor broke, so that the next task gets a new one; raises `EngineError` if none is made."""
        if self._make is None:
            raise EngineError(
                f"{self.place} broke: a process of it ended during one of {', '.join(suspects)}; give a function "
                "that makes an executor, and it is made again; what is done stays"
            )
        self._is_broken = True

    def lost(self) -> EngineError:
        """Make the error of tasks that the executor dropped."""
        return EngineError(
            f"{self.place} dropped its tasks: it was shut down, or is out of reach; what is done stays, and running "
            "the same again continues"
        )

    def close(self) -> None:
        """Shut down an executor that this engine made; nobody waits for what it still runs."""
        if self._make is not None:
            self._executor.shutdown(wait=False)

    def _renew(self) -> None:
        assert self._make is not None
        self._executor.shutdown(wait=True)
        self._executor = self._make()
        self._is_broken = False


def _maker(executor: Any) -> Callable[[], Executor] | None:
    """Return `executor` if it makes executors, None if it is one. Raises `UsageError` if it is neither."""
    if not isinstance(executor, type) and hasattr(executor, "submit"):
        return None
    if callable(executor):
        return executor
    raise UsageError(f"{executor!r} is no executor; give one of concurrent.futures, or a function that makes one")


def _is_shut_down(error: Exception) -> bool:
    """Whether an executor raised `error` as it takes no more tasks."""
    return isinstance(error, RuntimeError) or type(error).__name__ == "ClosedClientError"  # Dask's


def slots_of(executor: Any) -> int | None:
    """Return how many tasks an executor runs at once, as far as it says; otherwise the processors of this machine.

    None of a Dask client that has lost its scheduler: tasks that it took meanwhile would wait for ever.
    """
    dask = sys.modules.get("distributed.cfexecutor")  # not imported: whoever has such an executor has imported it
    if dask is not None and isinstance(executor, dask.ClientExecutor):
        return _threads_of(executor._client)
    for name in ("_max_workers", "num_workers"):  # the standard library's and loky's; mpi4py's
        if isinstance(count := getattr(executor, name, None), int):
            return count
    return os.cpu_count() or 1


def _threads_of(client: Any) -> int | None:
    try:
        return sum(client.nthreads().values())
    except Exception:  # a client that is losing its scheduler raises what it happens to stumble over
        return None if client.status in ("closing", "closed") else 0
