"""`--dry-run`: what the images are and what a command would do with them, shown; nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from hvae_codec.errors import HvaeCodecError, UsageError

from .display import console, interruptible, print_json, show, stages

if TYPE_CHECKING:
    from hvae_codec.data.sources import ImageSource
    from hvae_codec.distributed import DistributedContext
    from hvae_codec.progress import Stage

Forecast = TypeVar("Forecast")


def check_alone(worker: str, processes: DistributedContext) -> None:
    """Raise `UsageError` if there are several workers, which would all say the same."""
    if worker:
        raise UsageError(f"--dry-run is of the whole store, and --worker {worker} is given; leave one of the two out")
    if processes.world_size > 1:
        raise UsageError(f"--dry-run is for one process, and torchrun started {processes.world_size}; start it alone")


def look(
    source: ImageSource,
    wanted: ImageSource,
    forecast: Callable[[Stage], Forecast],
    data_of: Callable[[Forecast], Mapping[str, Any]],
    sentences_of: Callable[[Forecast], Sequence[str]],
    *,
    skipping: bool,
    as_json: bool,
) -> None:
    """Show what `wanted`, a part of `source`, is, and what `forecast` finds that the command takes.

    If that cannot be told, as of images that cannot be read, the survey is shown before the error.
    """
    from hvae_codec.data.survey import survey
    from hvae_codec.report.survey import refusal_sentence, survey_data, survey_table

    how = source.preprocessing
    with interruptible("Nothing was written."):
        with stages() as stage:
            found = survey(wanted, source, progress=stage("Looking at images"))
        if not as_json:
            show(survey_table(found, str(source.container.path), how), refusal_sentence(found, skipping))
        try:
            with stages() as stage:
                told = forecast(stage)
        except HvaeCodecError as error:
            if as_json:
                print_json(_data(survey_data(found, how), None, str(error)))
            raise
    if as_json:
        print_json(_data(survey_data(found, how), data_of(told)))
    else:
        console().print(*sentences_of(told), "Nothing was written.", sep="\n")


def _data(survey: Mapping[str, Any], forecast: Mapping[str, Any] | None, problem: str = "") -> dict[str, Any]:
    return {"dry_run": True, "survey": survey, "forecast": forecast, "problem": problem}
