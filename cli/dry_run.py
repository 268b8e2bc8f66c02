"""`--dry-run`: what the images are and what a command would do with them, shown; nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from hvae_codec.errors import HvaeCodecError, UsageError

from .display import console, interruptible, print_json, show, stages

if TYPE_CHECKING:
    from hvae_codec.data.sources import ImageSource
    from hvae_codec.data.survey import Survey
    from hvae_codec.data.training_and_held_out import TrainingAndHeldOut
    from hvae_codec.distributed import DistributedContext
    from hvae_codec.progress import Stage

Forecast = TypeVar("Forecast")


def check_whole(worker: str) -> None:
    """Raise `UsageError` if there are several workers, which would all say the same."""
    if worker:
        raise UsageError(f"--dry-run is of the whole store, and --worker {worker} is given; leave one of the two out")


def check_alone(processes: DistributedContext) -> None:
    """Raise `UsageError` if torchrun started several processes, which would all say the same."""
    if processes.world_size > 1:
        raise UsageError(f"--dry-run is for one process, and torchrun started {processes.world_size}; start it alone")


def look(
    images: TrainingAndHeldOut,
    wanted: ImageSource,
    forecast: Callable[[Stage], Forecast],
    data_of: Callable[[Forecast], Mapping[str, Any]],
    sentences_of: Callable[[Forecast], Sequence[str]],
    *,
    skipping: bool,
    as_json: bool,
) -> None:
    """Show what `wanted`, a part of `images`, is, and the other source, and what `forecast` finds that is taken.

    If that cannot be told, as of images that cannot be read, the survey is shown before the error.
    """
    with interruptible("Nothing was written."):
        surveyed = [*_surveys(images, wanted)]
        if not as_json:
            _show(surveyed, skipping)
        try:
            with stages() as stage:
                told = forecast(stage)
        except HvaeCodecError as error:
            if as_json:
                print_json(_data(surveyed, None, str(error)))
            raise
    if as_json:
        print_json(_data(surveyed, data_of(told)))
    else:
        console().print(*sentences_of(told), "Nothing was written.", sep="\n")


def _surveys(images: TrainingAndHeldOut, wanted: ImageSource) -> Iterator[tuple[ImageSource, Survey]]:
    """Survey `wanted`, and then the other source, if there are two."""
    from hvae_codec.data.survey import survey

    whole, *others = sorted(images.wholes, key=lambda source: source.container is not wanted.container)
    for part, source in ((wanted, whole), *((other, other) for other in others)):
        with stages() as stage:
            yield source, survey(part, source, progress=stage("Looking at images"))


def _show(surveyed: Sequence[tuple[ImageSource, Survey]], skipping: bool) -> None:
    from hvae_codec.report.survey import refusal_sentence, survey_table

    for source, found in surveyed:
        table = survey_table(found, str(source.container.path), source.preprocessing)
        show(table, refusal_sentence(found, skipping))


def _data(
    surveyed: Sequence[tuple[ImageSource, Survey]], forecast: Mapping[str, Any] | None, problem: str = ""
) -> dict[str, Any]:
    from hvae_codec.report.survey import survey_data

    own, *others = [
        {"data": str(source.container.path), **survey_data(found, source.preprocessing)} for source, found in surveyed
    ]
    other = others[0] if others else None
    return {"dry_run": True, "survey": own, "other_survey": other, "forecast": forecast, "problem": problem}
