"""Progress bars: their last lines, which logs keep, say how long the work took and its average rate."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from hvae_codec_cli.display import RateColumn, Stages


class Clock:
    """A time that a test sets."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def bar(clock) -> Progress:
    return Progress(RateColumn("images"), get_time=clock, console=Console(file=io.StringIO()))


def rates(bar: Progress) -> list[str]:
    """What the bars show, from the first to the last."""
    (column,) = bar.columns
    return [str(column(task)) for task in bar.tasks]


def report(clock: Clock, progress, *reports: tuple[float, int]) -> None:
    """Call `progress` at times, seconds from the first call, with images of 1,000."""
    begun = clock.seconds
    for seconds, done in reports:
        clock.seconds = begun + seconds
        progress(done, 1000)


def test_the_last_rate_is_of_all_the_work_and_stays(bar, clock):
    stage = Stages(bar, None)
    report(clock, stage("Ranking"), (4.0, 900), (5.0, 950), (6.0, 1000))  # a slow tail
    report(clock, stage("Reading"), (0.5, 1000))  # one report
    clock.seconds += 90.0  # other work of the command
    assert rates(bar) == ["166.7 images/s", "2,000.0 images/s"]


def test_the_rate_of_long_work_is_not_that_of_its_end(bar, clock):
    report(
        clock,
        Stages(bar, None).continued("Encoding"),
        (1.0, 9),
        (100.0, 900),
        *((100.0 + n, 900 + n) for n in range(1, 101)),
    )
    assert rates(bar) == ["5.0 images/s"]


def test_what_was_done_before_does_not_count(bar, clock):
    stage = Stages(bar, None)
    report(clock, stage.continued("Decoding"), (2.0, 900), (4.0, 950), (6.0, 1000))
    report(clock, stage.continued("Encoding"), (2.0, 1000))  # the last batch alone was missing
    report(clock, stage.continued("Recoding"), (2.0, 200), (6.0, 1000))  # nothing was done before
    assert rates(bar) == ["25.0 images/s", "", "166.7 images/s"]


def test_while_it_goes_on_the_rate_is_that_of_late(bar, clock):
    progress = Stages(bar, None)("Encoding")
    progress(10, 1000)
    report(clock, progress, (1.0, 20), (100.0, 30), (101.0, 130), (102.0, 230))
    assert rates(bar) == ["2.3 images/s"]
