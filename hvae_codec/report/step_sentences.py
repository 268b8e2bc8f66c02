"""Sentences about quantiser steps, and about what images cost that are stored and decoded."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..analysis.cutoff_cost import StoredCost
from ..analysis.step_choice import ChosenCodec
from ..analysis.step_search import FALLBACK, LIMITS, FoundStep
from .counts import count
from .splits import count_images

STDS = "posterior standard deviations"


def step_sentence(codec: ChosenCodec) -> str:
    """Say how the step was found, what it costs and where it is kept; empty if it was not looked for."""
    if codec.is_learned:
        step = codec.codec.to_dict()["step"]
        return f"Steps: those that the run has learned{'' if step == 1 else f', times {step:g}'}."
    if codec.found is None:
        return ""
    if codec.write_error:
        kept = f"; could not be kept in {codec.path} ({codec.write_error})"
    else:
        where = "kept in" if codec.is_new else "from"
        others = "" if codec.is_of_these_images else ", found on other images than these"
        kept = "" if codec.path is None else f"; {where} {codec.path}{others}"
    return f"{_found_sentence(codec.found)}{kept}."


def _found_sentence(found: FoundStep) -> str:
    images = count_images(found.images, found.held_out)
    if not found.is_tolerable:
        none = f"as none from {LIMITS[0]:g} on is within {_limit(found)}"
        return f"Step {found.step:g}, {none}: {_change(found)}, on {images}"
    largest = ", the largest that is tried" if found.step == LIMITS[1] else ""
    if math.isnan(found.confidence):
        return f"Step {found.step:g} {STDS}{largest}: {_change(found)}, on {images}; one image gives no confidence"
    sure = f"{100 * found.confidence:.0f}%" if found.confidence < 0.99 else "more than 99%"
    within = f"within {_limit(found)} with {sure} confidence"
    return f"Step {found.step:g} {STDS}{largest}: {_change(found)}, {within}, on the {images} that it was chosen on"


def _limit(found: FoundStep) -> str:
    more = f"{100 * found.tolerance:g}% above " if found.tolerance else ""
    return f"{more}the distortion of posterior samples"


def _change(found: FoundStep) -> str:
    """Write what decoded images have, against posterior samples."""
    change, error = 100 * found.change / found.sampled, 100 * found.change_se / found.sampled
    paired = f"{change:+.2f}%" if math.isnan(error) else f"{change:+.2f}% ± {error:.2f}%"
    return f"decoded, {found.distortion:.3f} bits/dim of distortion against {found.sampled:.3f} ({paired})"


def stored_sentence(stored: StoredCost, images: int, codec: ChosenCodec | None = None) -> str:
    """Say what images take and cost that are stored and decoded with `codec`, of a cost measured on so many images."""
    some = "" if stored.images == images else f"; encoded and decoded: {stored.images:,} of them"
    return (
        f"Stored and decoded {stored.total:.3f} bits/dim: {stored.bits:.3f} of latents, {stored.distortion:.3f} of "
        f"distortion{_stored_change(stored, codec)}; PSNR {stored.psnr:.2f} dB{some}."
    )


def _stored_change(stored: StoredCost, codec: ChosenCodec | None) -> str:
    """Write the change that storing makes: nothing if the codes are those that the run was trained for."""
    is_learned = codec is not None and codec.is_learned
    if codec is not None and is_learned and codec.codec.to_dict()["step"] == 1:
        return ""
    error = "" if math.isnan(stored.change_se) else f" ± {stored.change_se:.5f}"
    return f" ({stored.change:+.5f}{error} from {'the steps as learned' if is_learned else 'posterior samples'})"


def steps_sentences(codecs: Sequence[ChosenCodec], rules: Sequence[str]) -> list[str]:
    """Say where the steps of a table's rows are from, and which rows have none that is tolerable."""
    if any(codec.is_learned for codec in codecs):
        return [step_sentence(codecs[0])]
    found = [codec.found for codec in codecs if codec.found is not None]
    if not found:
        return []
    images, new = count_images(found[0].images, found[0].held_out), [codec for codec in codecs if codec.is_new]
    of = f"the largest step within {_limit(found[0])}, on {images}"
    error = next((codec.write_error for codec in new if codec.write_error), "")
    kept = f" ({count(len(new), 'step')} could not be kept in {new[0].path}: {error})" if error else ""
    none = [rule for rule, codec in zip(rules, codecs, strict=True) if codec.found and not codec.found.is_tolerable]
    lacks = f"No step from {LIMITS[0]:g} on is within that at {', '.join(none)}: {FALLBACK:g} was taken."
    return [f"Each cutoff has {of}{kept}.", *([lacks] if none else [])]
