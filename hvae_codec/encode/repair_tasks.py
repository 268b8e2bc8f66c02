"""Damaged row groups as tasks of an engine: each is encoded again somewhere, and put in the place of what is damaged.

A task has its row group's images; who runs it holds the open store and the model. The driver holds the store's lock.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..engine.engine import Engine, Here
from ..engine.per_process import PerProcess
from ..engine.taking_part import taking_part
from ..engine.tally import Tally
from ..errors import DataError, EngineError, StoreError
from ..model.device_choice import choose_device
from ..model.hvae import HVAE
from ..model.recorded import GraphMode, Recording
from ..progress import Progress
from ..store.reader import open_damaged
from ..verification.same_store import StoreReference
from .deep_verify import load_store_model, run_of
from .repair_images import GivenImages, RepairItem
from .repair_row_groups import RepairedRowGroup, RowGroupRepairer


@dataclass(frozen=True, kw_only=True)
class RepairOptions:
    """What the encode was given, so that the same comes out, and where processes elsewhere compute."""

    batch_size: int | None = None  # images through the model at once; None: what `default_batch_size` chooses
    seed: int = 0  # of the noise that rate and distortion are measured with
    check: bool = False  # whether all images given are read, and compared with those that were encoded
    device: str = "auto"  # of processes elsewhere: cpu, cuda, or auto, a GPU if they have one
    graph: GraphMode = "auto"  # whether work on their GPUs is recorded


def repair_row_groups(
    given: GivenImages,
    model: HVAE,
    row_groups: Sequence[int],
    options: RepairOptions,
    engine: Engine,
    tally: Tally | None = None,
    progress: Progress | None = None,
) -> list[RepairedRowGroup]:
    """Encode these row groups again, and say what became of each, in their order.

    Raises `StoreError` if `model` is another one than encoded the store, or if a worker sees another store.
    """
    store, found = given.store, dict[int, RepairedRowGroup]()
    here = RowGroupRepairer.open(store, model, options.batch_size, options.seed)
    repairer = PerProcess(partial(_opened, StoreReference.of(store), run_of(model), options), lambda: here)
    total, done = sum(len(store.row_groups.rows(number)) for number in row_groups), 0
    tally = tally or Tally()
    items = _items(given, row_groups, found, travel=not isinstance(engine, Here))
    with closing(engine.run(partial(_repair, repairer), items, tally=tally)) as outcomes:
        for outcome in outcomes:
            found[outcome.item.number] = repaired = _given_up(outcome.error) or outcome.get()
            if repaired.seen is not None:
                given.source.note(outcome.item.positions, repaired.seen)
            done += len(store.row_groups.rows(outcome.item.number))
            if progress is not None:
                progress(done, total)
    if tally.retries:
        store.path.remove_partial_files()  # of processes that ended
    return [found[number] for number in row_groups]


def _items(
    given: GivenImages, row_groups: Sequence[int], found: dict[int, RepairedRowGroup], *, travel: bool
) -> Iterator[RepairItem]:
    """Yield those whose images are there; the others are `found` to be lost."""
    for number in row_groups:
        try:
            item = given.item(number, travels=travel)
        except (DataError, StoreError) as error:
            found[number] = RepairedRowGroup(note=str(error))
            continue
        yield item


def _given_up(error: Exception | None) -> RepairedRowGroup | None:
    return RepairedRowGroup(note=str(error)) if isinstance(error, EngineError) else None


def _opened(reference: StoreReference, run: Path | None, options: RepairOptions) -> RowGroupRepairer:
    """Open the store and load the model in another process; that of the store if there is no run."""
    store = reference.open(open_damaged)
    with taking_part():
        model = load_store_model(store.path, choose_device(options.device), run)
        model.recording = Recording(options.graph)
        return RowGroupRepairer.open(store, model, options.batch_size, options.seed)


def _repair(repairer: PerProcess[RowGroupRepairer], item: RepairItem) -> RepairedRowGroup:
    return repairer.get().repair(item)
