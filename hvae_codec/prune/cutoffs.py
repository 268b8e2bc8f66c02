"""What a user asks to keep (a share of the dimensions, a KL, a mask in a file), and the mask that it becomes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from ..config import PruningConfig
from ..errors import UsageError
from ..model.hvae import HVAE
from .kl_stats import Granularity, KLStats
from .mask import Count, LatentMask, load_mask
from .tolerance import Tolerated

KEEP = "keep "  # first word of the rule of a share
ALL_LEFT = "all that is left"  # the rule of all that a pruned run has
TOLERANCE = "tolerance"  # first word of the rule of a cutoff that was found for a tolerance


@dataclass(frozen=True)
class Cutoff:
    """A mask and what was asked for."""

    rule: str  # what was asked for: `keep 3%`, `cutoff 0.01 bits`, `tolerance 0.5%`, `mask.json`
    keep: float  # share of the dimensions (or variates) asked for; if none was, the share of the dimensions kept
    mask: LatentMask
    note: str = ""  # a sentence if the mask keeps more than was asked for, else empty


@dataclass(frozen=True, kw_only=True)
class CutoffSpec:
    """What to keep: one of `keep`, `bits`, `tolerance` and `file`, or all that is there."""

    keep: float | None = None  # share of the latent dimensions, or of what `count` names, 0 to 1
    bits: float | None = None  # KL in bits per latent dimension that is to be exceeded
    tolerance: float | None = None  # tolerated loss as a share of the NELBO, 0 to 1
    file: Path | None = None  # a mask
    granularity: Granularity = "variate"
    count: Count = "dimensions"
    is_default: bool = False  # whether nobody asked for it; see `fitting`

    def __post_init__(self) -> None:
        if self.count == "variates" and (self.keep is None or self.granularity == "position"):
            raise UsageError("--count variates is for --keep of whole variates; leave one of the two out")

    @property
    def rule(self) -> str:
        """Write what is asked for, as the cutoff's `rule` has it."""
        by = ", by position" if self.granularity == "position" else ""
        if self.keep is not None:
            return f"{KEEP}{100 * self.keep:g}%{' of variates' if self.count == 'variates' else by}"
        if self.bits is not None:
            return f"cutoff {self.bits:g} bits{by}"
        if self.tolerance is not None:
            return f"{TOLERANCE} {100 * self.tolerance:g}%{by}"
        if self.file is not None:
            return self.file.name.encode(errors="replace").decode()  # names of files need not be valid Unicode
        return f"{ALL_LEFT}{by}"

    def check(self, model: HVAE, run: Path | None = None) -> None:
        """Raise as `cutoff` does, if that can be known before there are statistics; `run` names that of the model."""
        if self.file is not None:
            _cutoff_of_file(model, self)
        if self.keep is not None and model.pruning is not None and self.keep > _left(model.pruning):
            raise UsageError(
                f"keep is {100 * self.keep:g}%, and {run or model.run} was pruned to {100 * model.pruning.share:g}%; "
                f"give at most that, or the run it was pruned from as --model: {model.pruning.run}"
            )
        if self.count == "variates" and model.pruning is not None:
            raise UsageError(f"--count variates is of whole models, and {run or model.run} was pruned; leave it out")

    def cutoff(self, model: HVAE, stats: KLStats) -> Cutoff | None:
        """Make the cutoff; None for a tolerance, which needs images: `find_tolerated`, then `tolerated_cutoff`.

        Raises `UsageError` if nothing can be kept that way or the mask is another model's, `ModelError` if the mask is
        missing or damaged.
        """
        self.check(model)
        if self.keep is not None:
            return _cutoff_at_keep(stats, self, self.keep)
        if self.bits is not None:
            mask = LatentMask.from_cutoff(stats, self.bits, granularity=self.granularity)
            return Cutoff(self.rule, mask.kept_share, mask)
        if self.file is not None:
            return _cutoff_of_file(model, self)
        mask = LatentMask.from_keep(stats, 1.0, granularity=self.granularity)
        return Cutoff(self.rule, mask.kept_share, mask) if self.tolerance is None else None


def fitting(specs: Sequence[CutoffSpec], model: HVAE) -> list[CutoffSpec]:
    """Of the `specs` that nobody asked for, leave out what a pruned run has not; add all that it has left, as the last.

    Of an unpruned run's, all stay as they are.
    """
    pruning = model.pruning
    if pruning is None or not any(spec.is_default for spec in specs):
        return list(specs)
    asked = [spec for spec in specs if not spec.is_default]
    possible = [spec for spec in specs if spec.is_default and (spec.keep or 0.0) < _left(pruning)]
    return [*asked, *possible, CutoffSpec(granularity=specs[0].granularity)]


def _left(pruning: PruningConfig) -> float:
    """Return the share that a run was pruned to; a little more, as shares are written with few digits."""
    return pruning.share * (1.0 + 1e-6)


def _cutoff_at_keep(stats: KLStats, spec: CutoffSpec, keep: float) -> Cutoff:
    mask = LatentMask.from_keep(stats, keep, granularity=spec.granularity, count=spec.count)
    if spec.count == "variates":
        few = mask.kept_variates == 1 > keep * sum(len(k) for k in mask.keep)
        note = f"{100 * keep:g}% of the variates are less than one; kept the highest-ranked." if few else ""
        return Cutoff(spec.rule, keep, mask, note)
    what = "latent dimension" if spec.granularity == "position" else "variate"
    share = f"{100 * mask.kept_share:.2g}% of the dimensions, more than {100 * keep:g}%"
    over = mask.kept_dims > math.floor(keep * mask.dims + 1e-6)
    note = f"The highest-ranked {what} alone holds {share}; kept it." if over else ""
    return Cutoff(spec.rule, keep, mask, note)


def _cutoff_of_file(model: HVAE, spec: CutoffSpec) -> Cutoff:
    path = cast(Path, spec.file)
    mask = load_mask(path)
    try:
        mask.check_fits(model)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return Cutoff(spec.rule, mask.kept_share, mask)


def tolerated_cutoff(found: Tolerated) -> Cutoff:
    """Make the cutoff that was found for a tolerance."""
    rule = f"{TOLERANCE} {100 * found.tolerance:g}%{_by(found.mask)}"
    return Cutoff(rule, found.mask.kept_share, found.mask)


def merge_equal(cutoffs: Sequence[Cutoff]) -> list[Cutoff]:
    """Join the cutoffs that came to one mask, and sort them from the smallest mask to the largest.

    The keep of several is the smallest share that was asked for.
    """
    groups: list[list[Cutoff]] = []
    for cutoff in sorted(cutoffs, key=lambda cutoff: (cutoff.mask.kept_dims, cutoff.keep)):
        equal = next((group for group in groups if group[0].mask.keeps_the_same(cutoff.mask)), None)
        if equal:
            equal.append(cutoff)
        else:
            groups.append([cutoff])
    return [_joint(group) for group in groups]


def _joint(equal: Sequence[Cutoff]) -> Cutoff:
    shares = [cutoff.keep for cutoff in equal if cutoff.rule.startswith(KEEP)]
    rule = _joint_rule([cutoff.rule for cutoff in equal])
    return replace(equal[0], rule=rule, keep=min(shares, default=equal[0].keep))


def _joint_rule(rules: Sequence[str]) -> str:
    """Join the rules of one mask.

    >>> _joint_rule(["keep 5%, by position", "tolerance 1%", "keep 7%, by position", "keep 10%, by position"])
    'keep 5% to 10%, by position and tolerance 1%'
    """
    rules = list(dict.fromkeys(rules))
    shares = [rule for rule in rules if rule.startswith(KEEP)]
    if len(shares) > 1:
        shares = [f"{shares[0].partition('%')[0]}% to {shares[-1].removeprefix(KEEP)}"]
    others = sorted((rule for rule in rules if not rule.startswith(KEEP)), key=lambda rule: rule.startswith(TOLERANCE))
    return " and ".join([*shares, *others])


def _by(mask: LatentMask) -> str:
    return ", by position" if mask.granularity == "position" else ""
