"""How a cutoff is asked for: a share of the dimensions, a KL, a mask in a file; and how such a wish is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import UsageError
from ..model.hvae import HVAE
from .kl_stats import KLStats
from .mask import Count, LatentMask, load_mask
from .ranking import Granularity
from .tolerance import Tolerated

DEFAULT_KEEP = 0.03
"""Share of the latent dimensions kept where nobody says how much: that of the paper's section 7."""


TOLERANCE = "tolerance"
"""What the rule of a cutoff begins with that was found for a tolerance."""


@dataclass(frozen=True)
class Cutoff:
    """A mask and what was asked for."""

    rule: str
    """What was asked for: `keep 3%`, `cutoff 0.01 bits`, `tolerance 0.5%`, `mask.json`."""
    keep: float
    """Share of the dimensions (or variates) asked for; where none was, the share of the dimensions kept."""
    mask: LatentMask
    note: str = ""
    """A sentence where the mask keeps more than was asked for, else empty."""


@dataclass(frozen=True)
class CutoffSpec:
    """What to keep, as a user says it: one of `keep`, `bits`, `tolerance` and `file`."""

    keep: float | None = None
    """Share of the latent dimensions, or of what `count` names, 0 to 1."""
    bits: float | None = None
    """KL in bits per latent dimension that is to be exceeded."""
    tolerance: float | None = None
    """Tolerated loss as a share of the NELBO, 0 to 1."""
    file: Path | None = None
    """A mask."""
    granularity: Granularity = "variate"
    count: Count = "dimensions"

    def __post_init__(self) -> None:
        if self.count == "variates" and (self.keep is None or self.granularity == "position"):
            raise UsageError("--count variates is for --keep of whole variates; leave one of the two out")

    def check(self, model: HVAE) -> None:
        """Raise like `cutoff` where that can be told before there are statistics."""
        if self.file is not None:
            _cutoff_of_file(model, self.file)

    def cutoff(self, model: HVAE, stats: KLStats) -> Cutoff | None:
        """The cutoff; None of a tolerance, for which images are needed: `find_tolerated`, then `tolerated_cutoff`.

        Raises `UsageError` where nothing can be kept that way or the mask is another model's, `ModelError` where the
        mask is missing or damaged.
        """
        if self.keep is not None:
            return _cutoff_at_keep(stats, self.keep, self.granularity, self.count)
        if self.bits is not None:
            mask = LatentMask.from_cutoff(stats, self.bits, granularity=self.granularity)
            return Cutoff(f"cutoff {self.bits:g} bits{_by(mask)}", mask.kept_share, mask)
        return None if self.file is None else _cutoff_of_file(model, self.file)


def parse_cutoffs(
    keep: str = "",
    bits: str = "",
    tolerance: str = "",
    files: Sequence[Path] = (),
    granularity: Granularity = "variate",
    count: Count = "dimensions",
) -> list[CutoffSpec]:
    """Wishes from text, lists of values separated by commas: `3%,10%`, `0.01,0.1`, `0.5%`; and from masks in `files`.

    Raises `UsageError` where one cannot be read.
    """
    wish = CutoffSpec(granularity=granularity)
    keeps = sorted({parse_keep(part) for part in _parts(keep)})
    if count == "variates" and (bits or tolerance or files) and not keeps:
        raise UsageError("--count variates is for --keep of whole variates; leave one of the two out")
    return [
        *(CutoffSpec(keep=share, granularity=granularity, count=count) for share in keeps),
        *(replace(wish, bits=cutoff) for cutoff in sorted({parse_bits(part) for part in _parts(bits)})),
        *(replace(wish, tolerance=loss) for loss in sorted({parse_tolerance(part) for part in _parts(tolerance)})),
        *(replace(wish, file=file) for file in files),
    ]


def parse_cutoff(
    keep: str = "",
    bits: str = "",
    tolerance: str = "",
    file: Path | None = None,
    granularity: Granularity = "variate",
    count: Count = "dimensions",
) -> CutoffSpec:
    """The one wish among these; 3% of the dimensions without any. `UsageError` on several, or one unreadable."""
    wishes = parse_cutoffs(keep, bits, tolerance, [] if file is None else [file], granularity, count)
    if len(wishes) > 1:
        raise UsageError("several cutoffs are asked for; give one of --keep, --cutoff, --tolerance and --mask")
    return wishes[0] if wishes else CutoffSpec(keep=DEFAULT_KEEP, granularity=granularity, count=count)


def _parts(text: str) -> list[str]:
    return text.split(",") if text else []


def _cutoff_at_keep(stats: KLStats, keep: float, granularity: Granularity, count: Count) -> Cutoff:
    mask = LatentMask.from_keep(stats, keep, granularity=granularity, count=count)
    if count == "variates":
        few = mask.kept_variates == 1 > keep * sum(len(k) for k in mask.keep)
        note = f"{100 * keep:g}% of the variates are less than one; kept the highest-ranked." if few else ""
        return Cutoff(f"keep {100 * keep:g}% of variates", keep, mask, note)
    what = "latent dimension" if granularity == "position" else "variate"
    note = ""
    if mask.kept_dims > math.floor(keep * mask.dims + 1e-6):
        share = f"{100 * mask.kept_share:.2g}% of the dimensions, more than {100 * keep:g}%"
        note = f"The highest-ranked {what} alone holds {share}; kept it."
    return Cutoff(f"keep {100 * keep:g}%{_by(mask)}", keep, mask, note)


def _cutoff_of_file(model: HVAE, path: Path) -> Cutoff:
    mask = load_mask(path)
    try:
        mask.check_fits(model)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    name = path.name.encode(errors="replace").decode()  # names of files need not be valid Unicode
    return Cutoff(name, mask.kept_share, mask)


def tolerated_cutoff(found: Tolerated) -> Cutoff:
    """The cutoff that a tolerance led to."""
    rule = f"{TOLERANCE} {100 * found.tolerance:g}%{_by(found.mask)}"
    return Cutoff(rule, found.mask.kept_share, found.mask)


def _by(mask: LatentMask) -> str:
    return ", by position" if mask.granularity == "position" else ""


def parse_keep(text: str) -> float:
    """A keep fraction from `3%` or `0.03`.

    >>> parse_keep("3%"), parse_keep("0.5")
    (0.03, 0.5)

    Raises `UsageError` where `text` is no number, or not above 0% and at most 100%.
    """
    fraction = _share(text, "keep", "give a share of the latent dimensions such as 3% or 0.03")
    if not 0.0 < fraction <= 1.0:
        raise UsageError(f"keep is {text}; it must be above 0% and at most 100%")
    return fraction


def _share(text: str, name: str, advice: str) -> float:
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        return float(number) / (100.0 if percent else 1.0)
    except ValueError:
        raise UsageError(f"{name} is {text!r}; {advice}") from None


def parse_bits(text: str) -> float:
    """A KL cutoff in bits per latent dimension; raises `UsageError` where `text` is no finite number."""
    try:
        bits = float(text)
    except ValueError:
        bits = math.nan
    if not math.isfinite(bits):
        raise UsageError(f"the cutoff is {text!r}; give bits per latent dimension such as 0.01")
    return bits


def parse_tolerance(text: str) -> float:
    """A tolerated loss of NELBO as a share of it, from `0.5%` or `0.005`.

    >>> parse_tolerance("0.5%")
    0.005

    Raises `UsageError` where `text` is no number, or not at least 0% and below 100%.
    """
    tolerance = _share(text, "the tolerance", "give a share of the NELBO such as 0.5% or 0.005")
    if not 0.0 <= tolerance < 1.0:
        raise UsageError(f"the tolerance is {text}; it must be at least 0% of the NELBO and below 100%")
    return tolerance
