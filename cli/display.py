"""Shows messages, tables, and progress bars with rate and remaining time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from hvae_codec.progress import Progress as ProgressFunction
from hvae_codec.progress import Stage

from .signals import exit_code

if TYPE_CHECKING:
    from hvae_codec.data.sources import ImageSource

CONTINUES = "The same command continues where it stopped."
"""What to do after Ctrl-C, of commands that can be resumed."""


def console() -> Console:
    """Make the console for results on standard output, wide enough for tables if that is no terminal.

    Markup is not interpreted: names of files may look like it.
    """
    out = Console(highlight=False, markup=False)
    return out if out.is_terminal else Console(highlight=False, markup=False, width=140)


class RateColumn(ProgressColumn):
    """Shows items per second."""

    def __init__(self, unit: str) -> None:
        super().__init__(Column(no_wrap=True))
        self.unit = unit

    def render(self, task: Task) -> Text:
        """Show the rate, once there is one."""
        return Text("" if task.speed is None else f"{task.speed:,.1f} {self.unit}/s", style="cyan")


@contextmanager
def progress_bar(unit: str = "images", *, quiet: bool = False) -> Iterator[Progress]:
    """Show a bar on standard error with count, rate and remaining time; work that fails takes its bars with it."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        RateColumn(unit),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=Console(stderr=True),
        disable=quiet,
    )
    with progress:
        try:
            yield progress
        except BaseException:
            progress.live.transient = True
            raise


@contextmanager
def interruptible(advice: str | None) -> Iterator[None]:
    """Turn Ctrl-C, or another signal, into one sentence on standard error (none without `advice`) and its exit code."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        if advice is not None:
            Console(stderr=True, highlight=False).print(f"Stopped. {advice}".rstrip(), soft_wrap=True, markup=False)
        raise typer.Exit(exit_code(stopped)) from None


@contextmanager
def stages(unit: str = "images", *, quiet: bool = False) -> Iterator[Stage]:
    """Show progress of work in several pieces: a bar for each, from the first images done; nothing if `quiet`.

    So work that fails before it starts leaves no bar above its error.
    """
    with progress_bar(unit, quiet=quiet) as bar:

        def announce(name: str) -> ProgressFunction:
            task = bar.add_task(name, total=None, visible=False)
            return lambda done, total: bar.update(task, completed=done, total=total, visible=True)

        yield announce


def report_source(source: ImageSource) -> None:
    """Say, on standard error, what was done to the images that were read."""
    notes = {
        "of another size were cropped to a square and resized": source.resized,
        "lost their alpha channel": source.alpha_dropped,
        "could not be decoded and were left out": len(source.skipped),
    }
    for note, count in notes.items():
        if count:
            total = len(source) + len(source.skipped)
            Console(stderr=True, highlight=False).print(f"{count:,} of {total:,} images {note}")


def report_unused(images: int, training: ImageSource, held_out: ImageSource) -> None:
    """Say, on standard error, that images outside train/ and val/ are used for neither."""
    unused = images - len(training) - len(held_out)
    if unused > 0:
        text = f"{unused:,} of {images:,} images are in neither train/ nor val/ and are not used"
        Console(stderr=True, highlight=False).print(text)
