"""Finds the largest quantiser step whose distortion is tolerable: what decoding loses against posterior samples.

    distortion of the decoded images, bits/dim
      │                            o  coarse: measured, and too much
      │- - - - - - - - - - - -?- - -  that of posterior samples × (1 + tolerance)
      │              o                fine: measured, and tolerable
      └───────────────────────────── step (log)

The bound that a model is trained for already counts the distortion of posterior samples. Rounding to a step of one
posterior std does less harm than sampling; how coarse a step does as much depends on model and mask, as the std of one
variate differs from image to image and from place to place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.sources import Images, ImageSource, as_source
from ..encode.closed_loop import closed_loop_distortion
from ..encode.coder import LatentCoder, quantiser_steps
from ..engine.engine import Engine
from ..engine.given import Executors, given_engine
from ..engine.tally import Tally
from ..errors import UsageError
from ..model.batch_size import batch_size_of
from ..model.hvae import HVAE
from ..model.keyed_noise import keyed_rows, noise_of
from ..progress import Progress
from ..prune.kl_stats import KLStats
from ..prune.mask import LatentMask
from ..prune.parts import Cut, Part, PartWork, measured_parts
from ..prune.sweep import MaskedElbo, check_measurable, finite_terms, standard_error
from ..prune.tolerance import confidence
from ..store.quantiser import make_codec

STEP_IMAGES = 256  # images that commands look for a step on; how sure it then is: docs/pruning.md, Codes
LIMITS = (0.1, 16.0)  # steps that are looked at
FALLBACK = 1.0  # the step if even the finest is not tolerable
PRECISION = 1.03  # ratio of the coarser step to the one found, at most
_FIRST = (1.0, 2.0)
_QUICK = 4  # passes that interpolate; later ones halve


@dataclass(frozen=True)
class FoundStep:
    """The step that was found for a mask, and what it costs on the images it was found on."""

    step: float  # in average posterior stds
    tolerance: float  # share of the distortion of posterior samples, 0 or more
    sampled: float  # mean distortion of posterior samples with this mask, bits/dim
    distortion: float  # mean of the images encoded with this step and decoded, bits/dim
    change_se: float  # standard error of the mean paired difference of these two; NaN of one image
    confidence: float  # one-sided, that the distortion of all images like these is tolerable; NaN of one image
    images: int  # how many it was measured on
    is_tolerable: bool  # False if even the finest step costs more than is tolerated, and the step is 1
    held_out: bool | None = None  # whether training leaves the images out; None if that is not known
    source: str = ""  # fingerprint of these images; empty if that is not known

    @property
    def change(self) -> float:
        """The mean paired difference from posterior samples, bits/dim."""
        return self.distortion - self.sampled


def find_step(
    model: HVAE,
    images: Images,
    mask: LatentMask,
    stats: KLStats,
    *,
    tolerance: float = 0.0,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    engine: Engine | None = None,
    executor: Executors | None = None,
    device: str | None = None,
    tally: Tally | None = None,
) -> FoundStep:
    """Find the largest step of integer codes whose mean distortion over `images` is at most 1 + `tolerance` times that
    of posterior samples with the same mask.

    Distortion is -log2 p(x | z) in bits/dim: of z as a store with this step would give it back, and of z as `sweep`
    samples it. The steps are of variates' average posterior stds in `stats`; of a run with codes, of its learned steps.
    Between 0.1 and 16; 1 if even the finest costs more. An image's noise depends on `seed` and its index in its file
    or folder alone. Runs on `engine` or `executor` as `kl_stats`. Raises `UsageError` if `tolerance` is negative or not
    a number, and as `sweep`.
    """
    (found,) = find_steps(
        model,
        images,
        [mask],
        stats,
        tolerance=tolerance,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
        engine=engine,
        executor=executor,
        device=device,
        tally=tally,
    )
    return found


def find_steps(
    model: HVAE,
    images: Images,
    masks: Sequence[LatentMask],
    stats: KLStats,
    *,
    tolerance: float = 0.0,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    engine: Engine | None = None,
    executor: Executors | None = None,
    device: str | None = None,
    tally: Tally | None = None,
) -> list[FoundStep]:
    """Find a step for each of `masks` as `find_step` does, in passes that all masks share."""
    if not 0.0 <= tolerance < math.inf:
        raise UsageError(f"the step tolerance is {100 * tolerance:g}%; it must be at least 0% of the distortion")
    source, brackets = as_source(images), [StepBracket(tolerance) for _ in masks]
    check_measurable(model, masks, source)
    cut, passes = Cut.of(batch_size_of(model, batch_size, device)), _Passes(progress, len(source))
    with given_engine(engine, executor) as used:
        while any(wanted := [bracket.wanted() for bracket in brackets]):
            work = ClosedLoopWork(model, stats, masks, wanted, seed, device, sampled=not passes.done)
            parts = list(measured_parts(used, work, source, cut, passes.report, tally))
            rows = iter(finite_terms(np.concatenate(parts, axis=1)))
            if not passes.done:
                for bracket in brackets:
                    bracket.sampled = next(rows)
            for bracket, steps in zip(brackets, wanted, strict=True):
                bracket.measured |= {step: next(rows) for step in steps}
            passes.done += 1
    passes.finish()
    return [bracket.found(source) for bracket in brackets]


@dataclass
class StepBracket:
    """What is known of one mask: distortions of images at some steps, and of posterior samples; which to measure."""

    tolerance: float
    sampled: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))  # [images], bits/dim
    measured: dict[float, NDArray[np.float64]] = field(default_factory=dict)  # the same at each step
    rounds: int = 0

    def wanted(self) -> tuple[float, ...]:
        """Choose the steps to measure next, ascending; none if the step is found."""
        self.rounds += 1
        if not self.measured:
            return _FIRST
        fine, coarse = self.ends()
        if fine is None:
            return tuple(step for step in (LIMITS[0], 0.5) if step < min(self.measured)) if coarse != LIMITS[0] else ()
        if coarse is None:
            return tuple(step for step in (4.0, LIMITS[1]) if step > fine)
        return () if coarse <= PRECISION * fine else self._between(fine, coarse)

    def ends(self) -> tuple[float | None, float | None]:
        """Return the largest step that is tolerable, below the smallest that is not; None if there is no such step.

        Rounding errors jump, so that a curve is a little rough: what is found has nothing measured above it that is
        tolerable, but beyond steps that are not.
        """
        coarse = min((step for step in self.measured if self._excess(step) > 0.0), default=None)
        fine = max((step for step in self.measured if coarse is None or step < coarse), default=None)
        return fine, coarse

    def _excess(self, step: float) -> float:
        return float(self.excess(step).mean())

    def excess(self, step: float) -> NDArray[np.float64]:
        """Return by how much each image's distortion at `step` is above the tolerated one, bits/dim."""
        return self.measured[step] - (1.0 + self.tolerance) * self.sampled

    def _between(self, fine: float, coarse: float) -> tuple[float, ...]:
        """Choose two steps around where the distortion is expected to be the tolerated one.

        It rises about as the step squared. If that does not lead there in a few passes, the bracket is halved.
        """
        low, high = self._excess(fine), self._excess(coarse)
        if self.rounds > 1 + _QUICK:
            return (_rounded(math.sqrt(fine * coarse)),)
        guess = math.sqrt(fine**2 + (coarse**2 - fine**2) * -low / (high - low))
        half = math.sqrt(PRECISION) * 0.995  # so that, rounded, their ratio is at most `PRECISION`
        near = (_rounded(guess / half), _rounded(guess * half))
        return tuple(step for step in near if fine < step < coarse) or (_rounded(math.sqrt(fine * coarse)),)

    def found(self, source: ImageSource) -> FoundStep:
        """Return the largest tolerable step that was measured on `source`."""
        fine, _ = self.ends()
        step = FALLBACK if fine is None else fine
        closed, sampled = self.measured[step], self.sampled
        error, sure = standard_error(closed - sampled), confidence(self.excess(step))
        means = float(sampled.mean()), float(closed.mean())
        figures = *means, error, sure, len(closed), fine is not None
        return FoundStep(step, self.tolerance, *figures, held_out=source.held_out, source=source.fingerprint)


def _rounded(step: float) -> float:
    """Round to what is said and stored of a step.

    >>> _rounded(1.57321), _rounded(12.345)
    (1.57, 12.3)
    """
    return float(f"{step:.3g}")


class _Passes:
    """Reports how far passes over the images are, whose number is known at their end."""

    EXPECTED = 3

    def __init__(self, progress: Progress | None, images: int) -> None:
        self.done, self._progress, self._images = 0, progress, images

    def report(self, done: int, total: int) -> None:
        """Tell that `done` images of this pass are measured."""
        if self._progress is not None:
            self._progress(self.done * total + done, max(self.EXPECTED, self.done + 1) * total)

    def finish(self) -> None:
        """Tell that all is done: fewer passes than expected may have been needed."""
        if self._progress is not None:
            total = self.done * self._images
            self._progress(total, total)


class ClosedLoopWork(PartWork["tuple[MaskedElbo, list[LatentCoder]]", NDArray[np.float64]]):
    """Measures a part's distortions, bits/dim: [rows, images].

    Rows are those of posterior samples, one per mask, if these are asked for, then those of each mask's steps.
    """

    def __init__(
        self,
        model: HVAE,
        stats: KLStats,
        masks: Sequence[LatentMask],
        steps: Sequence[Sequence[float]],
        seed: int,
        device: str | None = None,
        *,
        sampled: bool,
    ) -> None:
        """`steps` of each mask."""
        super().__init__(model, device)
        self.masks = list(masks) if sampled else []
        codecs = [(mask, make_codec("int", step)) for mask, own in zip(masks, steps, strict=True) for step in own]
        self.coded = [(mask, codec, quantiser_steps(mask, codec, stats)) for mask, codec in codecs]
        self.seed = seed

    def prepare(self, model: HVAE) -> tuple[MaskedElbo, list[LatentCoder]]:
        """Take masks and steps to the model's device."""
        return MaskedElbo(model, self.masks), [LatentCoder(model, *coded) for coded in self.coded]

    @torch.no_grad()
    def measure(self, tools: tuple[MaskedElbo, list[LatentCoder]], part: Part) -> NDArray[np.float64]:
        """Measure a part batch by batch; the bottom-up path runs once for all rows."""
        elbo, coders = tools
        model, masks = coders[0].model, len(self.masks)
        found = np.zeros((masks + len(coders), len(part)))
        for numbers, batch in part.batches():
            images = torch.from_numpy(batch).to(model.device)
            activations, own = model.activations(images), slice(numbers.start, numbers.stop)
            if masks:
                drawn = keyed_rows(model.config, part.keys(numbers, self.seed), model.device)
                found[:masks, own] = elbo(activations, images, noise_of(model.config, drawn))[:, 1].cpu().numpy()
            found[masks:, own] = closed_loop_distortion(coders, activations, images).cpu().numpy()
            part.report(numbers.stop)
        return found
