"""What `train` shows while it works: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

if TYPE_CHECKING:
    from hvae_codec.train.watch import Status

SECONDS_ON_TERMINAL = 1.0
SECONDS_ELSEWHERE = 30.0


@dataclass(frozen=True)
class TrainingDisplay:
    """Functions to be called as training goes."""

    every_seconds: float
    """How often `show` is worth calling."""
    show: Callable[[Status], None]
    reading: Callable[[int, int], None]
    """With the images read into memory, and all."""
    warn: Callable[[str], None]


@contextmanager
def training_display(quiet: bool) -> Iterator[TrainingDisplay]:
    """A display on standard error; a `quiet` one, of a process that is not the first, shows nothing."""
    console = Console(stderr=True, highlight=False, quiet=quiet)
    if console.is_terminal:
        with _bar(console) as display:
            yield display
    else:
        yield _lines(console)


@contextmanager
def _bar(console: Console) -> Iterator[TrainingDisplay]:
    columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TextColumn("{task.fields[pace]}", style="cyan"))
    with Progress(TextColumn("{task.description}"), *columns, console=console, transient=True) as bar:
        task = bar.add_task("Training", total=None, pace="")

        def show(status: Status) -> None:
            bar.update(task, description=status.text(), completed=status.step, total=status.steps, pace=_pace(status))

        def reading(done: int, total: int) -> None:
            bar.update(task, description="Reading images", completed=done, total=total)

        yield TrainingDisplay(SECONDS_ON_TERMINAL, show, reading, lambda text: _warn(console, text))


def _lines(console: Console) -> TrainingDisplay:
    def show(status: Status) -> None:
        console.print(f"step {status.step}/{status.steps}: {status.text()}; {_pace(status)}", soft_wrap=True)

    return TrainingDisplay(SECONDS_ELSEWHERE, show, lambda done, total: None, lambda text: _warn(console, text))


def _warn(console: Console, text: str) -> None:
    console.print(f"hvae-codec: warning: {text}", soft_wrap=True, markup=False)


def _pace(status: Status) -> str:
    left = timedelta(seconds=round(status.seconds_left))
    return f"{status.images_per_second:,.0f} images/s, {left} left"
