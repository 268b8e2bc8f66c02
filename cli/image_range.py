"""Reads which images a command takes: `--images`, numbers as Python slices have them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from hvae_codec.errors import UsageError

if TYPE_CHECKING:
    from hvae_codec.data.sources import ImageSource
    from hvae_codec.data.training_and_held_out import TrainingAndHeldOut

    from .options import SplitName

ImageRange = Annotated[
    str, typer.Option("--images", help="Which of these images, in order: all, 7, :1000, 5000: or 0:1000:10.")
]


def parse_range(text: str, count: int, what: str = "the store") -> range:
    """Read image numbers from `all`, `7`, `0:100` or `0:1000:10`, as Python slices have them.

    >>> parse_range("0:100:10", 50)
    range(0, 50, 10)

    Raises `UsageError` if `text` is none of these or names no image of `what`, which has `count`.
    """
    if not re.fullmatch(r"all|-?\d{1,18}|(-?\d{1,18})?:(-?\d{1,18})?(:(0*[1-9]\d{0,17})?)?", text):
        raise UsageError(f"--images is {text!r}; give all, a number, or a range such as 0:100")
    parts = [int(part) if part else None for part in text.replace("all", ":").split(":")]
    everything = range(count)
    chosen = everything[slice(*parts)] if len(parts) > 1 else _single(everything, parts[0] or 0)
    if not chosen:
        raise UsageError(f"--images {text} names no image; {what} has {count}, numbered from 0")
    return chosen


def _single(everything: range, number: int) -> range:
    index = number + len(everything) if number < 0 else number
    return everything[index : index + 1] if index >= 0 else range(0)


def selected(images: TrainingAndHeldOut, split: SplitName, numbers: str) -> ImageSource:
    """Select the images of a split and, of these, those that `--images` names by their `numbers`.

    Raises `DataError` if there is no image of the split, `UsageError` as `parse_range`.
    """
    import numpy as np

    wanted = images.split(split.value)
    what = f"{wanted.container.path}" + ("" if split.value == "all" else f" with --split {split.value}")
    chosen = parse_range(numbers, len(wanted), what)
    whole = len(chosen) == len(wanted)
    return wanted if whole else wanted.subset(np.arange(chosen.start, chosen.stop, chosen.step))
