"""Row groups of a finished store as tasks of an engine: each is read somewhere, and gives what is wrong with it.

A task is a number and the files that are known to be damaged; who runs it holds the open store, without its names.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from ..engine.engine import Engine, Here
from ..engine.outcomes import Outcome
from ..engine.per_process import PerProcess
from ..engine.tally import Tally
from ..errors import EngineError
from ..progress import Progress
from ..store.damage import Damage
from ..store.reader import Store, open_damaged
from .inspection import Inspection
from .row_group import files_of, row_group_damages
from .same_store import StoreReference

CheckImages = Callable[[range], Iterator[Damage]]
"""What is wrong with the images of a row group whose latents are whole, given their numbers."""


_UNREAD = "could not be looked at: "


@dataclass(frozen=True)
class RowGroupItem:
    """What a task is told of its row group."""

    number: int
    lost: frozenset[str] = frozenset()  # files of it that are known to be damaged
    is_whole: bool = True  # whether nothing is known to be wrong with it

    def __str__(self) -> str:
        return f"row group {self.number}"


@dataclass(frozen=True, eq=False)
class RowGroupReader:
    """What a process needs to read row groups."""

    store: Store
    check_images: CheckImages | None = None

    def damages(self, item: RowGroupItem) -> list[Damage]:
        """Say what is wrong with a row group beyond what is known."""
        found = list(row_group_damages(self.store, item.number, item.lost))
        if self.check_images is not None and item.is_whole and not found:
            found += self.check_images(self.store.row_groups.rows(item.number))
        return found


def check_row_groups(
    inspection: Inspection,
    row_groups: Sequence[int] | None = None,
    *,
    check_images: PerProcess[CheckImages] | None = None,
    progress: Progress | None = None,
    engine: Engine | None = None,
    tally: Tally | None = None,
) -> list[Damage]:
    """Say what is wrong with `row_groups`, all if None, beyond what the inspection says, in their order.

    A row group that ends each worker that reads it is a damage, too.
    """
    store, row_groups = inspection.store, range(len(inspection.store.row_groups)) if row_groups is None else row_groups
    total, done = sum(len(store.row_groups.rows(number)) for number in row_groups), 0
    found: dict[int, list[Damage]] = {}
    with closing(_outcomes(inspection, row_groups, check_images, engine or Here(), tally)) as outcomes:
        for outcome in outcomes:
            if damages := _damages(store, outcome):
                found[outcome.number] = damages
            done += len(store.row_groups.rows(outcome.item.number))
            if progress is not None:
                progress(done, total)
    return [damage for number in sorted(found) for damage in found[number]]


def _outcomes(
    inspection: Inspection,
    row_groups: Sequence[int],
    check_images: PerProcess[CheckImages] | None,
    engine: Engine,
    tally: Tally | None,
) -> Generator[Outcome[RowGroupItem, list[Damage]]]:
    store = inspection.store
    reader = PerProcess(
        partial(_opened, StoreReference.of(store), check_images),
        lambda: RowGroupReader(store, None if check_images is None else check_images.get()),
    )
    return engine.run(partial(_check, reader), _items(inspection, row_groups), tally=tally)


def _items(inspection: Inspection, row_groups: Sequence[int]) -> Iterator[RowGroupItem]:
    lost = {damage.file for damage in inspection.damages}
    damaged = {damage.row_group for damage in inspection.damages}
    for number in row_groups:
        own = lost.intersection(files_of(inspection.store, number)) if lost else lost
        yield RowGroupItem(number, frozenset(own), number not in damaged)


def _opened(reference: StoreReference, check_images: PerProcess[CheckImages] | None) -> RowGroupReader:
    store = reference.open(open_damaged)
    return RowGroupReader(store, None if check_images is None else check_images.get())


def _check(reader: PerProcess[RowGroupReader], item: RowGroupItem) -> list[Damage]:
    return reader.get().damages(item)


def _damages(store: Store, outcome: Outcome[RowGroupItem, list[Damage]]) -> list[Damage]:
    if not isinstance(outcome.error, EngineError):
        return outcome.get()
    rows = store.row_groups.rows(outcome.item.number)
    return [Damage(str(outcome.item), f"{_UNREAD}{outcome.error}", rows)]


def unread(damages: Sequence[Damage]) -> list[Damage]:
    """Those of `damages` that are row groups which ended each worker that read them."""
    return [damage for damage in damages if damage.problem.startswith(_UNREAD)]
