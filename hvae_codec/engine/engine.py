"""The seam between what is done to an item and where: work is a function of one item, stateless and idempotent.

    for outcome in engine.run(work, items):     as tasks finish
    for result in engine.map(work, items):      in the order of the items

Who runs a task does not show in its result, and one may run twice: its worker died, or was only thought dead.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable
from contextlib import closing

from .outcomes import Item, Outcome, Result, is_of_one_item, without_traceback
from .tally import Tally

REACH = 4
"""Windows that results in order may run ahead of the slowest task."""


class Engine(ABC):
    """Runs tasks somewhere."""

    may_repeat = False
    """Whether tasks may run again without `Outcome.attempts` counting that: Dask sends them elsewhere by itself."""

    @property
    @abstractmethod
    def window(self) -> int:
        """How many tasks are under way at once."""

    @abstractmethod
    def run(
        self,
        work: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        name: Callable[[Item], str] = str,
        tally: Tally | None = None,
        reach: int | None = None,
    ) -> Generator[Outcome[Item, Result]]:
        """Yield what becomes of each of `items`, as tasks finish.

        work: picklable, with all that it needs in it; it travels with each item, so it should be small
        items: taken one by one, a few ahead of the tasks that run
        name: what an error calls an item, such as `row group 17`
        tally: counts as tasks finish
        reach: how many windows beyond the first unfinished item may be taken; any number if not given

        A `DataError` or `OSError` of `work` is the outcome of its item; so is an `EngineError` if the item ended each
        worker that it was given to. Every other error is raised, at once, and tasks that wait are dropped, as they are
        if the generator is closed; those that run end by themselves, or with the engine. Raises `EngineError` if the
        place where tasks run is lost.
        """

    def map(
        self,
        work: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        name: Callable[[Item], str] = str,
        tally: Tally | None = None,
    ) -> Generator[Result]:
        """Yield the result of each of `items`, in their order; an error is raised in the place of its result.

        At most `REACH` windows of results wait for the slowest task. Arguments and errors are those of `run`.
        """
        early: dict[int, Outcome[Item, Result]] = {}
        number = 0
        with closing(self.run(work, items, name=name, tally=tally, reach=REACH)) as outcomes:
            for outcome in outcomes:
                early[outcome.number] = outcome
                while number in early:
                    yield early.pop(number).get()
                    number += 1


class Here(Engine):
    """This process: one task at a time, in the order of the items, each when its outcome is asked for."""

    window = 1

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
        for number, item in enumerate(items):
            outcome = _attempt(work, number, item)
            tally.count(failed=outcome.error is not None)
            yield outcome


def _attempt(work: Callable[[Item], Result], number: int, item: Item) -> Outcome[Item, Result]:
    try:
        return Outcome(number, item, result=work(item))
    except Exception as error:
        if not is_of_one_item(error):
            raise
        without_traceback(error)
        return Outcome(number, item, error=error)
