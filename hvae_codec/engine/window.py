"""The tasks of one run that are under way on an executor: a few per worker, whatever the number of items.

A task whose worker died is tried again. If its neighbours may have been the reason, all are suspects: once nothing else
is under way, they run alone, one after the other, until the one that ends its worker even then is known.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import BrokenExecutor, CancelledError, Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Generic

from ..errors import EngineError
from .outcomes import Item, Outcome, Result, WorkerEnded, culprit_error, deaths, is_of_one_item, without_traceback
from .renewable_executor import RenewableExecutor
from .tally import Tally

TASKS_PER_SLOT = 2
"""One that runs, and one that waits there for it to end."""

LOST_IN_A_ROW = 5
"""Items that end all their workers, one after the other, before the whole stops: then it is not the items."""

_TICK = 1.0
"""Seconds between looks at the number of workers, and, on systems where waiting is deaf to signals, at those."""


def window_size(executor: RenewableExecutor) -> int:
    """Return how many tasks are under way at once, as of now; one for a worker to come if there is none."""
    return TASKS_PER_SLOT * max(executor.slots, 1)


@dataclass
class _Task(Generic[Item]):
    number: int
    item: Item
    attempts: int = 0  # that ended with a worker's death
    alone: bool = False


class Window(Generic[Item, Result]):
    """One run on an executor; arguments are those of `Engine.run` and `ExecutorEngine`."""

    def __init__(
        self,
        executor: RenewableExecutor,
        work: Callable[[Item], Result],
        items: Iterable[Item],
        name: Callable[[Item], str],
        tally: Tally,
        *,
        retries: int,
        reach: int | None,
    ) -> None:
        self._executor, self._work, self._name, self._tally = executor, work, name, tally
        self._retries, self._reach = retries, reach
        self._items = iter(items)
        self._taken = 0
        self._exhausted = False
        self._under_way: dict[Future[Result], _Task[Item]] = {}
        self._suspects: deque[_Task[Item]] = deque()
        self._unfinished: dict[int, None] = {}  # numbers, in order
        self._finished: SimpleQueue[Future[Result]] = SimpleQueue()
        self._lost_in_a_row = 0
        self._is_alone = False  # what is under way is one suspect

    def outcomes(self) -> Generator[Outcome[Item, Result]]:
        """Yield outcomes as tasks finish; drop what waits when it ends early."""
        try:
            self._send()
            while self._under_way:
                if (outcome := self._settle(self._next_finished())) is not None:
                    del self._unfinished[outcome.number]
                    self._tally.count(failed=outcome.error is not None)
                    yield outcome
                self._send()
        finally:
            for future in self._under_way:
                future.cancel()

    def _next_finished(self) -> Future[Result]:
        while True:
            self._tally.workers = self._executor.slots
            try:
                return self._finished.get(timeout=_TICK)
            except Empty:
                continue

    def _send(self) -> None:
        """Fill the window; suspects wait until it is empty, and then have it for themselves."""
        while self._has_room() and (task := self._next_task()) is not None:
            self._submit(task)

    def _has_room(self) -> bool:
        if self._suspects:
            return not self._under_way
        size = 1 if self._is_alone else window_size(self._executor)
        return len(self._under_way) < size and not self._exhausted and not self._is_too_far()

    def _is_too_far(self) -> bool:
        if self._reach is None or not self._unfinished:
            return False
        return self._taken - next(iter(self._unfinished)) >= self._reach * window_size(self._executor)

    def _next_task(self) -> _Task[Item] | None:
        if self._suspects:
            task = self._suspects.popleft()
            task.alone = self._is_alone = True
            return task
        for item in self._items:
            number, self._taken = self._taken, self._taken + 1
            self._unfinished[number] = None
            return _Task(number, item)
        self._exhausted = True
        return None

    def _submit(self, task: _Task[Item]) -> None:
        try:
            future = self._executor.submit(self._work, task.item)
        except BrokenExecutor as error:
            if self._under_way:  # it broke since the last task was sent, and this one is above suspicion
                self._suspects.append(task)
                return
            future = Future()
            future.set_exception(error)
        self._under_way[future] = task
        future.add_done_callback(self._finished.put)

    def _settle(self, future: Future[Result]) -> Outcome[Item, Result] | None:
        """Return the outcome of a finished task; None if it is tried again. Raises what stops the whole."""
        task = self._under_way.pop(future)
        self._is_alone = False
        try:
            result = future.result()
        except CancelledError:
            raise self._executor.lost() from None
        except Exception as error:
            return self._failed(task, error)
        self._lost_in_a_row = 0
        return Outcome(task.number, task.item, result=result, attempts=task.attempts + 1)

    def _failed(self, task: _Task[Item], error: Exception) -> Outcome[Item, Result] | None:
        if died := deaths(error):
            return self._died(task, error, died)
        without_traceback(error)
        if not is_of_one_item(error):
            raise error
        self._lost_in_a_row = 0
        return Outcome(task.number, task.item, error=error, attempts=task.attempts + 1)

    def _died(self, task: _Task[Item], error: Exception, died: int) -> Outcome[Item, Result] | None:
        task.attempts += died
        certain = isinstance(error, WorkerEnded)
        if isinstance(error, BrokenExecutor):
            self._executor.broken([self._name(each.item) for each in (task, *self._under_way.values())])
        if (certain or task.alone) and task.attempts > self._retries:
            return self._given_up(task, str(error) if certain else "")
        self._tally.retries += 1
        if certain:
            self._submit(task)
        elif task.alone:
            self._suspects.appendleft(task)
        else:
            self._suspects.append(task)
        return None

    def _given_up(self, task: _Task[Item], how: str) -> Outcome[Item, Result]:
        error = culprit_error(self._name(task.item), task.attempts, how)
        self._lost_in_a_row += 1
        if self._lost_in_a_row == LOST_IN_A_ROW:
            raise EngineError(f"workers end whatever they are given, {LOST_IN_A_ROW} items in a row; the last: {error}")
        return Outcome(task.number, task.item, error=error, attempts=task.attempts)
