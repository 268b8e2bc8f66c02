"""Runs tasks on any `concurrent.futures.Executor`: this package's, the standard library's, Dask's, your own."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from types import TracebackType

from .engine import Engine
from .outcomes import Item, Outcome, Result
from .renewable_executor import RenewableExecutor
from .tally import Tally
from .window import Window, window_size

RETRIES = 2
"""Attempts after the first one that took a worker with it."""


class ExecutorEngine(Engine, AbstractContextManager["ExecutorEngine"]):
    """Runs tasks on an executor, or on those that a function makes: a new one in place of one that broke.

    executor: an executor, which stays open; or a function that makes one, which `close` shuts down
    slots: how many tasks run at once, a number or a function that counts, if the executor does not say
    place: what errors call it
    retries: how often a task is tried again whose worker died
    may_repeat: whether the executor tries tasks again by itself

    Raises `UsageError` if `executor` is neither.
    """

    def __init__(
        self,
        executor: Executor | Callable[[], Executor],
        *,
        slots: int | Callable[[], int] | None = None,
        place: str = "the executor",
        retries: int = RETRIES,
        may_repeat: bool = False,
    ) -> None:
        self._executor = RenewableExecutor(executor, slots, place)
        self._retries, self.may_repeat = retries, may_repeat

    @property
    def window(self) -> int:
        """How many tasks are under way at once."""
        return window_size(self._executor)

    def run(
        self,
        work: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        name: Callable[[Item], str] = str,
        tally: Tally | None = None,
        reach: int | None = None,
    ) -> Generator[Outcome[Item, Result]]:
        """Yield what becomes of each of `items`, see `Engine.run`."""
        tally = tally or Tally()
        tally.start()
        return Window(self._executor, work, items, name, tally, retries=self._retries, reach=reach).outcomes()

    def close(self) -> None:
        """Shut down an executor that this engine made; nobody waits for what it still runs."""
        self._executor.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
