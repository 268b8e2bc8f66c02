"""How large the codes of a store are, found out by reading them all: a task for each row group."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from functools import partial
from typing import NamedTuple

from ..engine.engine import Engine
from ..engine.per_process import PerProcess
from ..engine.tally import Tally
from ..progress import Progress
from ..store.reader import Store
from ..verification.same_store import StoreReference
from .checked_store import checked_codes
from .driver import NumberedRowGroup


class CodeRange(NamedTuple):
    """The least and the greatest code of an array."""

    least: int
    greatest: int

    @property
    def farthest(self) -> int:
        """The one that is farther from 0.

        >>> CodeRange(-130, 7).farthest
        -130
        """
        return max(self, key=abs)


def code_ranges(
    store: Store,
    resolutions: Sequence[int],
    engine: Engine,
    tally: Tally | None = None,
    progress: Progress | None = None,
) -> dict[int, CodeRange]:
    """The range of the codes of each array, by resolution; raises `StoreError` if one is damaged."""
    work = partial(_ranges, PerProcess(partial(StoreReference.of(store).open, Store.open), lambda: store), resolutions)
    found: dict[int, CodeRange] = {}
    done = 0
    items = map(NumberedRowGroup, range(len(store.row_groups)))
    with closing(engine.run(work, items, tally=tally)) as outcomes:
        for outcome in outcomes:
            for resolution, new in zip(resolutions, outcome.get(), strict=True):
                known = found.get(resolution, new)
                found[resolution] = CodeRange(min(known.least, new.least), max(known.greatest, new.greatest))
            done += len(store.row_groups.rows(outcome.item.row_group))
            if progress is not None:
                progress(done, len(store))
    return found


def _ranges(reader: PerProcess[Store], resolutions: Sequence[int], item: NumberedRowGroup) -> list[CodeRange]:
    codes = (checked_codes(reader.get(), resolution, item.row_group) for resolution in resolutions)
    return [CodeRange(int(numbers.min()), int(numbers.max())) for numbers in codes]
