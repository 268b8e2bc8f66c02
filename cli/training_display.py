"""Shows how training goes: a bar on a terminal; elsewhere a line every half minute."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from .display import Console, warn

if TYPE_CHECKING:
    from hvae_codec.train.progress import Status

SECONDS_ON_TERMINAL = 1.0
SECONDS_ELSEWHERE = 30.0


@dataclass(frozen=True)
class TrainingDisplay:
    """Functions to call as training goes."""

    every_seconds: float
    """Least time between two calls of `show`."""
    show: Callable[[Status], None]
    reading: Callable[[int, int], None]
    """Takes the images read into memory so far, and the images in all."""
    say: Callable[[str], None]
    """Prints a line above the bar."""
    warn: Callable[[str], None]


@contextmanager
def training_display(quiet: bool) -> Iterator[TrainingDisplay]:
    """Show training on standard error; nothing if `quiet`, as in all processes but the first."""
    console = Console(stderr=True, highlight=False, quiet=quiet)
    if console.is_terminal:
        with _bar(console) as display:
            yield display
    else:
        yield _lines(console)


@contextmanager
def _bar(console: Console) -> Iterator[TrainingDisplay]:
    """Two lines, so that neither is cut on a narrow terminal: how training goes, and how far it is."""
    columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TextColumn("{task.fields[pace]}", style="cyan"))
    bar, words = Progress(*columns), Text("Starting")
    task = bar.add_task("", total=None, pace="")

    def show(status: Status) -> None:
        words.plain = status.text()
        bar.update(task, completed=status.step, total=status.steps, pace=status.pace())

    def reading(done: int, total: int) -> None:
        words.plain = "Reading images" if done < total else "Starting"
        bar.update(task, completed=done, total=total)

    with Live(Group(words, bar), console=console) as live:
        try:
            yield TrainingDisplay(SECONDS_ON_TERMINAL, show, reading, *_sentences(console))
        except BaseException:  # work that fails takes its bar with it
            live.transient = True
            raise


def _lines(console: Console) -> TrainingDisplay:
    def show(status: Status) -> None:
        pace = f"; {status.pace()}" if status.pace() else ""
        console.print(f"step {status.step}/{status.steps}: {status.text()}{pace}", soft_wrap=True)

    return TrainingDisplay(SECONDS_ELSEWHERE, show, lambda done, total: None, *_sentences(console))


def _sentences(console: Console) -> tuple[Callable[[str], None], Callable[[str], None]]:
    return partial(console.print, soft_wrap=True, markup=False), partial(warn, console=console)
