"""Shows messages, tables, and progress bars with rate and remaining time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from hvae_codec.progress import Progress as ProgressFunction

from .plain_text import print_to_nobody
from .signals import exit_code
from .tables import in_parts

if TYPE_CHECKING:
    from hvae_codec.data.preprocessing import Preprocessing
    from hvae_codec.data.sources import ImageSource
    from hvae_codec.data.training_and_held_out import TrainingAndHeldOut
    from hvae_codec.engine.tally import Tally
    from hvae_codec.model.hvae import HVAE

CONTINUES = "The same command continues where it stopped."
"""What to do after Ctrl-C, of commands that can be resumed."""

SHOWN_NAMES = 10  # names of files in a message, at most


class Console(RichConsole):
    """A console that does not end the command if nobody reads on: what it computes may have taken days."""

    def on_broken_pipe(self) -> None:
        """Go on without output."""
        print_to_nobody(self.file)


def console() -> Console:
    """Make the console for results on standard output, wide enough for tables if that is no terminal.

    Markup is not interpreted: names of files may look like it.
    """
    out = Console(highlight=False, markup=False)
    return out if out.is_terminal else Console(highlight=False, markup=False, width=140)


def show(*results: Table | str) -> None:
    """Print sentences, and tables with all their figures, in several parts if the terminal is too narrow for one."""
    out = console()
    for result in results:
        out.print(*([result] if isinstance(result, str) else in_parts(result, out.width)), sep="\n")


def print_json(data: Mapping[str, Any]) -> None:
    """Print one JSON object on standard output."""
    print(json.dumps(data, indent=2))


class RateColumn(ProgressColumn):
    """Shows items per second."""

    def __init__(self, unit: str) -> None:
        super().__init__(Column(no_wrap=True))
        self.unit = unit

    def render(self, task: Task) -> Text:
        """Show the rate of late, once there is one, and in the end that of all the time."""
        rate = average_rate(task) if task.finished else recent_rate(task)
        return Text("" if rate is None else f"{rate:,.1f} {self.unit}/s", style="cyan")


def recent_rate(task: Task) -> float | None:
    """Items per second of late; if they are reported in one go, of all the time. None if it is not known yet."""
    if task.speed is None or not task.elapsed:
        return None
    return min(task.speed, task.completed / task.elapsed)


def average_rate(task: Task) -> float | None:
    """Items per second of finished work. Of work that may have been continued, what was done before does not count.

    How much that was is not known, only what the first report tells (`first`: items, seconds), which counts it in. So
    the rate is then at most that of what came after it; None if nothing did.
    """
    if not task.finished_time:
        return None
    overall, first = task.completed / task.finished_time, task.fields.get("first")
    if first is None:
        return overall
    done, seconds = task.completed - first[0], task.finished_time - first[1]
    return min(overall, done / seconds) if done > 0 and seconds > 0 else None


class Stages:
    """Announces pieces of long work, each of which gets a bar; it is a `Stage`."""

    def __init__(self, bar: Progress, tally: Tally | None) -> None:
        self._bar, self._tally = bar, tally

    def __call__(self, name: str) -> ProgressFunction:
        """Make what shows the progress of the piece `name`."""
        return self._announced(name, may_continue=False)

    def continued(self, name: str) -> ProgressFunction:
        """Do the same for work that may have been begun before, which counts the images done then as done."""
        return self._announced(name, may_continue=True)

    def _announced(self, name: str, *, may_continue: bool) -> ProgressFunction:
        task = self._bar.add_task(name, total=None, visible=False)
        shown = next(each for each in self._bar.tasks if each.id == task)

        def show_done(done: int, total: int) -> None:
            counts = f", {self._tally}" if self._tally is not None and str(self._tally) else ""
            if may_continue:
                shown.fields.setdefault("first", (done, shown.elapsed))
            self._bar.update(task, completed=done, total=total, visible=True, description=f"{name}{counts}")

        return show_done


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
    progress.start()
    try:
        yield progress
    except BaseException:
        progress.live.transient = True
        raise
    finally:
        shown = any(task.visible for task in progress.tasks)
        (progress.stop if shown else progress.live.stop)()  # the former ends a line, even if there is none


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
def stages(unit: str = "images", *, quiet: bool = False, tally: Tally | None = None) -> Iterator[Stages]:
    """Show progress of work in several pieces: a bar for each, from the first images done; nothing if `quiet`.

    So work that fails before it starts leaves no bar above its error. `tally` counts workers and retries, which are
    shown beside the name of the piece.
    """
    with progress_bar(unit, quiet=quiet) as bar:
        yield Stages(bar, tally)


def warn(text: str, console: Console | None = None) -> None:
    """Say, on standard error, what a user should know though the command goes on."""
    err = console or Console(stderr=True, highlight=False)
    err.print(f"hvae-codec: warning: {text}", soft_wrap=True, markup=False)


def warn_unfinished(model: HVAE) -> None:
    """Say, on standard error, that the run of `model` has not taken all its steps."""
    from hvae_codec.train.run_folder import unfinished_sentence

    if model.run is not None and (sentence := unfinished_sentence(model.run)):
        warn(sentence)


def report_source(source: ImageSource) -> None:
    """Say, on standard error, what was done to the images that were read."""
    total = len(source) + len(source.skipped)
    notes = {
        _resized_note(source.preprocessing): source.resized,
        _alpha_note(source.preprocessing): source.alpha_dropped,
        "were grey, and were made colour" if source.channels == 3 else "were colour, and were made grey": (
            source.recoloured
        ),
        "had more than 8 bits per channel, and were converted to 8": source.depth_reduced,
        "have several frames or pages, of which the first was taken": source.frames_dropped,
        "could not be used and were left out": len(source.skipped),
    }
    for note, count in notes.items():
        if count:
            say(f"{count:,} of {total:,} images {note}")
    for reason in sorted(set(source.skipped.values())):
        names = [name for name, why in source.skipped.items() if why == reason]
        say(f"  {reason} ({len(names):,}): {_first(names)}")
    own = source.container.passed_over
    if own:
        say(f"folders with a run, a store or an analysis that were passed over ({len(own):,}): {_first(own)}")
    if others := source.container.other_files:
        say(_other_files_sentence(others))


def _resized_note(how: Preprocessing) -> str:
    cut = {"centre": "cropped to a square and ", "none": ""}.get(how.crop, f"cropped to {how.crop} and ")
    return f"of another size were {cut}resized"


def _alpha_note(how: Preprocessing) -> str:
    colour = how.background_colour
    return f"with an alpha channel were laid on {colour}" if colour else "lost their alpha channel"


def _other_files_sentence(others: Mapping[str, int]) -> str:
    """Say how many files were not read, by ending.

    >>> _other_files_sentence({".heic": 900, "": 1})
    '901 other files (.heic 900, without an ending 1) were not read'
    """
    by_count = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    endings = _first([f"{ending or 'without an ending'} {number:,}" for ending, number in by_count])
    total = sum(others.values())
    return f"{total:,} other file{'s' if total > 1 else ''} ({endings}) {'were' if total > 1 else 'was'} not read"


def _first(names: Sequence[str]) -> str:
    """List names: all if they are few, or else the first ones and the number of the others."""
    more = f" and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more


def say(text: str) -> None:
    """Print a sentence on standard error."""
    Console(stderr=True, highlight=False, markup=False).print(text, soft_wrap=True)


def report_sources(images: TrainingAndHeldOut) -> None:
    """Say, on standard error, what was done to the images that were read of each source."""
    for source in images.sources:
        report_source(source)


def report_splits(images: TrainingAndHeldOut, run: Path | None = None) -> None:
    """Say, on standard error, which images are for training and which are held out, and where that may be wrong.

    It is if `run`, whose model is used, was trained on all of them.
    """
    from hvae_codec.report.splits import odd_layout_sentences, splits_sentence

    say(splits_sentence(images))
    if run is not None:
        _warn_trained_on(run, images)
    for source in images.sources:
        for sentence in odd_layout_sentences(source):
            warn(sentence)


def warn_of_copies(images: TrainingAndHeldOut) -> None:
    """Say, on standard error, that held-out images of a source of their own are copies of training images."""
    from hvae_codec.report.splits import copies_sentence

    with stages() as stage:
        sentence = copies_sentence(images, stage("Comparing with held-out images"))
    if sentence:
        warn(sentence)


def _warn_trained_on(run: Path, images: TrainingAndHeldOut) -> None:
    from hvae_codec.train.run_folder import trained_on_sentence

    if sentence := trained_on_sentence(run, images):
        warn(sentence)
