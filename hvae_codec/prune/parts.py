"""Images in parts, each measured by one task of an engine, wherever that runs.

    images ─ parts ─┬─ task ─┐
                    ├─ task ─┼─ results in the order of the images
                    └─ task ─┘

Neither parts, which are of whole batches, nor the order of sums depend on the engine: any number of workers gives the
numbers of one, to the last bit.
"""

from __future__ import annotations

import pickle
import zlib
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from contextlib import closing
from functools import partial
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..data.seen import Seen
from ..data.sources import ImageSource, check_batch_size
from ..engine.engine import Engine, Here
from ..engine.per_process import PerProcess
from ..engine.tally import Tally
from ..model.hvae import HVAE
from ..model.travelling_model import TravellingModel
from ..progress import Progress
from .image_keys import image_keys

PART_IMAGES = 64
"""Images of a part, at least, if their batches are smaller: a task should take much longer than to send it."""

Tools = TypeVar("Tools")
Result = TypeVar("Result")

Pixels = NDArray[np.uint8]
"""[B, C, H, W]"""


class Cut(NamedTuple):
    """How images are cut into batches and parts."""

    batch_size: int
    unit: int  # images of a part; batches do not reach across its borders either, if there is one part in all

    @classmethod
    def of(cls, batch_size: int, unit: int = 1) -> Cut:
        """Make parts of whole batches, in whole units; a batch that ends with its part may be smaller.

        >>> Cut.of(10), Cut.of(100, unit=256), Cut.of(300, unit=256)
        (Cut(batch_size=10, unit=70), Cut(batch_size=100, unit=256), Cut(batch_size=300, unit=512))

        Raises `UsageError` if the batch size is below 1.
        """
        check_batch_size(batch_size)
        if unit > 1:
            return cls(batch_size, -(-batch_size // unit) * unit)
        return cls(batch_size, -(-PART_IMAGES // batch_size) * batch_size)

    def ranges(self, total: int) -> Iterator[range]:
        """Yield the numbers of each part's images."""
        return (range(first, min(first + self.unit, total)) for first in range(0, total, self.unit))


class Part:
    """Consecutive images of a source; to another process, these alone travel.

    first: number of its first image among all
    batches: if it is one of those that are read in one go, in this process, all that are left of these
    """

    def __init__(
        self,
        source: ImageSource,
        rows: range,
        cut: Cut,
        *,
        first: int | None = None,
        batches: Iterator[Pixels] | None = None,
        progress: Progress | None = None,
        is_away: bool = False,
    ) -> None:
        self.source, self.rows, self.cut, self.is_away = source, rows, cut, is_away
        self.first = rows.start if first is None else first
        self._batches, self._progress = batches, progress

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        return f"the images {self.first:,} to {self.first + len(self) - 1:,}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (self.source.portion(self.rows), self.cut, self.first)

    def batches(self) -> Generator[tuple[range, Pixels]]:
        """Yield batches, each with its images' numbers within the part."""
        first = 0
        with closing(self._read()) as batches:
            for batch in batches:
                yield range(first, first + len(batch)), batch
                first += len(batch)

    def _read(self) -> Generator[Pixels]:
        if self._batches is not None:
            yield from islice(self._batches, -(-len(self) // self.cut.batch_size))
            return
        for unit in self._stretches():
            with closing(self.source.batches(self.cut.batch_size, start=unit.start, stop=unit.stop)) as batches:
                yield from batches

    def _stretches(self) -> Iterator[range]:
        """Yield images that are read in one go, with threads that read ahead."""
        if self.cut.unit % self.cut.batch_size == 0:
            return iter([self.rows])
        return (self.rows[own.start : own.stop] for own in self.cut.ranges(len(self)))

    def keys(self, numbers: range, seed: int) -> list[tuple[int, int]]:
        """Make the keys of the noise of its images of these numbers."""
        own = self.rows[numbers.start : numbers.stop]
        return image_keys(self.source, slice(own.start, own.stop), seed)

    def report(self, done: int) -> None:
        """Tell this process, if that is where it is measured, that so many of its images are done."""
        if self._progress is not None:
            self._progress(self.rows.start + done, len(self.source))


def _arrived(source: ImageSource, cut: Cut, first: int) -> Part:
    return Part(source, range(len(source)), cut, first=first, is_away=True)


class Measured(NamedTuple, Generic[Result]):
    """What a task found."""

    result: Result
    seen: Seen | None  # of the part's images, if the source is not the one that was read


class PartWork(ABC, Generic[Tools, Result]):
    """Measures parts with a model; one object in a process, however many parts that gets.

    `prepare` makes what parts need, such as tensors on the model's device: once in this process and once in others, or
    for each of several threads.
    """

    def __init__(self, model: HVAE, device: str | None = None) -> None:
        """`device` is where other processes compute, cpu or cuda; where the model is if not given."""
        self._travelling = TravellingModel(model, device)
        self._idle: list[Tools] = []

    @abstractmethod
    def prepare(self, model: HVAE) -> Tools:
        """Make what `measure` needs."""

    @abstractmethod
    def measure(self, tools: Tools, part: Part) -> Result:
        """Measure a part; what it returns can be pickled, if the part is away."""

    def __call__(self, part: Part) -> Measured[Result]:
        """Measure a part, and say what reading has shown of its images."""
        try:
            tools = self._idle.pop()
        except IndexError:
            tools = self.prepare(self._travelling.get())
        result = self.measure(tools, part)
        self._idle.append(tools)
        return Measured(result, part.source.seen if part.is_away else None)

    @property
    def per_process(self) -> PerProcess[PartWork[Tools, Result]]:
        """What tasks have of it: this object here, and one of its kind in each other process."""
        return PerProcess(partial(_unpacked, zlib.compress(pickle.dumps(self), 1)), lambda: self)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_idle": []}


def _unpacked(pickled: bytes) -> PartWork[Any, Any]:
    """Read a work that travelled in few bytes, as it does with each part: masks are long and repetitive."""
    work: PartWork[Any, Any] = pickle.loads(zlib.decompress(pickled))
    return work


def _measure(work: PerProcess[PartWork[Tools, Result]], part: Part) -> Measured[Result]:
    return work.get()(part)


def measured_parts(
    engine: Engine,
    work: PartWork[Tools, Result],
    source: ImageSource,
    cut: Cut,
    progress: Progress | None = None,
    tally: Tally | None = None,
    *,
    sums: bool = False,
) -> Generator[Result]:
    """Yield what `work` measures of each part, in order.

    In this process there is one part, unless results are `sums`, whose order counts. `progress` is called with the
    images done, here after each batch; `tally` counts parts elsewhere. Raises what work and engine raise.
    """
    if isinstance(engine, Here):
        with closing(_parts_here(source, cut, progress, sums)) as own:
            yield from (measured.result for measured in engine.map(work, own))
        return
    parts = (Part(source, rows, cut) for rows in cut.ranges(len(source)))
    with closing(engine.map(partial(_measure, work.per_process), parts, tally=tally)) as results:
        for rows, measured in zip(cut.ranges(len(source)), results, strict=True):
            if measured.seen is not None:
                source.note(rows, measured.seen)
            if progress is not None:
                progress(rows.stop, len(source))
            yield measured.result


def _parts_here(source: ImageSource, cut: Cut, progress: Progress | None, sums: bool) -> Generator[Part]:
    """Yield parts whose images are read ahead from part to part."""
    if not sums:
        yield Part(source, range(len(source)), cut, progress=progress)
        return
    with closing(source.batches(cut.batch_size)) as batches:
        for rows in cut.ranges(len(source)):
            yield Part(source, rows, cut, batches=batches, progress=progress)
