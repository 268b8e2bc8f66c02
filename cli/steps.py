"""Reads quantiser steps as they are typed: `auto`, `1.5`; and what `auto` may cost: `0.5%`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvae_codec.errors import UsageError

from .cutoffs import read_share
from .options import CodecName

if TYPE_CHECKING:
    from hvae_codec.analysis.step_choice import AutoStep
    from hvae_codec.store.quantiser import Codec

AUTO = "auto"


def parse_codec(codec: CodecName, step: str = "", tolerance: str = "") -> Codec | AutoStep:
    """Make the codec, or say how its step is to be found.

    Raises `UsageError` if it has no step and one is given, or if a step or a tolerance cannot be read.
    """
    from hvae_codec.analysis.step_choice import AutoStep
    from hvae_codec.store.quantiser import make_codec

    if codec not in (CodecName.int, CodecName.archive):
        if step or tolerance:
            option = "--step" if step else "--step-tolerance"
            raise UsageError(f"--codec {codec.value} has no {option}; leave one of the two out")
        return make_codec(codec.value)
    if step in ("", AUTO):
        return AutoStep(parse_step_tolerance(tolerance) if tolerance else 0.0)
    if tolerance:
        raise UsageError(f"--step-tolerance is for --step auto, and --step is {step}; leave one of the two out")
    return make_codec("int", parse_step(step))


def parse_step(text: str) -> float:
    """Read a step; raises `UsageError` if `text` is no number. Which numbers there may be, `make_codec` says.

    >>> parse_step("1.5")
    1.5
    """
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--step is {text!r}; give {AUTO}, or a number such as 1.0") from None


def parse_step_tolerance(text: str) -> float:
    """Read by how much more distortion is tolerated, as a share of it, from `0.5%` or `0.005`.

    >>> parse_step_tolerance("0.5%")
    0.005

    Raises `UsageError` if `text` is no number, or not at least 0% and below 100%.
    """
    tolerance = read_share(text, "the step tolerance", "give a share of the distortion such as 0.5% or 0.005")
    if not 0.0 <= tolerance < 1.0:
        raise UsageError(f"the step tolerance is {text}; it must be at least 0% of the distortion and below 100%")
    return tolerance
