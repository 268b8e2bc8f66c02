"""Chooses the codec that was asked for; if its step is to be found, by what the run stores or by a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..data.sources import ImageSource
from ..errors import UsageError
from ..model.hvae import HVAE
from ..progress import Stage
from ..prune.kl_stats import KLStats
from ..prune.mask import LatentMask
from ..store.quantiser import Codec, make_codec
from .step_file import keep_step, step_key, steps_path, stored_step
from .step_search import STEP_IMAGES, FoundStep, find_steps


@dataclass(frozen=True)
class AutoStep:
    """Asks for the largest step that is tolerable, in place of a codec; see `find_step`."""

    tolerance: float = 0.0  # share of the distortion of posterior samples, 0 or more
    name: str = "int"  # the codec's

    def to_dict(self) -> dict[str, Any]:
        """Say what is asked for, as a codec says what it is."""
        return {"name": self.name, "step": "auto", **({"tolerance": self.tolerance} if self.tolerance else {})}


@dataclass(frozen=True)
class ChosenCodec:
    """A codec, and how its step was found."""

    codec: Codec
    found: FoundStep | None = None  # None if nothing had to be found
    is_learned: bool = False  # whether its steps are those that the run has learned, times that of the codec
    path: Path | None = None  # where the run stores the step; None if it does not
    is_new: bool = False  # whether the step was found just now
    is_of_these_images: bool = True  # whether it was found on the images at hand
    write_error: str = ""  # why a new one could not be stored; empty if it was


def choose_codecs(
    wanted: Codec | AutoStep,
    model: HVAE,
    masks: Sequence[LatentMask],
    stats: KLStats,
    images: ImageSource,
    *,
    stage: Stage,
    is_shared: bool = False,
    keep: bool = True,
    at_most: int = STEP_IMAGES,
    **work: Any,
) -> list[ChosenCodec]:
    """Choose a codec for each of `masks`: what was asked for, steps that the run stores, or what a search finds.

    A run with codes brings its learned steps. What is not stored is searched for on `at_most` of `images`, evenly
    spaced, for all masks together, and stored, unless `keep` is false. Of several processes that do so at once, all get
    the step that was stored first. `work` is further arguments of `find_steps`. Raises `UsageError` if other processes
    must find the same (`is_shared`) and the run cannot be written to, or if a tolerance is given for learned steps; and
    as `find_steps`.
    """
    if not isinstance(wanted, AutoStep):
        is_learned = model.config.learned_steps and wanted.name == "int"
        return [ChosenCodec(wanted, is_learned=is_learned)] * len(masks)
    if model.config.learned_steps:
        if wanted.tolerance:
            raise UsageError(
                f"the step tolerance is {100 * wanted.tolerance:g}%, and this run has learned its steps, so that none "
                "is looked for; leave --step-tolerance out, or give a --step, which is times those"
            )
        return [ChosenCodec(make_codec(wanted.name), is_learned=True)] * len(masks)
    path = model.run and steps_path(model.run)
    keys = [step_key(mask, stats, wanted.tolerance) for mask in masks]
    stored = [stored_step(path, key) if path else None for key in keys]
    missing = [number for number, step in enumerate(stored) if step is None]
    chosen = [_stored(step, wanted.name, path, images) for step in stored if step is not None]
    if missing:
        sought = [masks[number] for number in missing]
        sample, progress = images.evenly(at_most), stage("Looking for the step")
        found = find_steps(model, sample, sought, stats, tolerance=wanted.tolerance, progress=progress, **work)
        for number, step in zip(missing, found, strict=True):
            new = ChosenCodec(make_codec(wanted.name, step.step), step, path=path if keep else None, is_new=True)
            chosen.insert(number, _kept(new, keys[number], is_shared) if new.path else new)
    return chosen


def _stored(step: FoundStep, name: str, path: Path | None, images: ImageSource) -> ChosenCodec:
    same = not step.source or step.source == images.evenly(step.images).fingerprint
    return ChosenCodec(make_codec(name, step.step), step, path=path, is_of_these_images=same)


def _kept(new: ChosenCodec, key: dict[str, Any], is_shared: bool) -> ChosenCodec:
    """Store a step that was found; what counts is what the run stores then."""
    assert new.found is not None
    assert new.path is not None
    try:
        first = keep_step(new.path, key, new.found)
    except OSError as error:
        if is_shared:
            raise UsageError(
                f"the step that was found, {new.found.step:g}, could not be kept in {new.path} ({error.strerror}), "
                f"where other workers would find it; give each of them --step {new.found.step:g}"
            ) from None
        return replace(new, write_error=str(error.strerror))
    return replace(new, codec=make_codec(new.codec.name, first.step), found=first)
