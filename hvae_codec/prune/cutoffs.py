"""How a cutoff is asked for: a share of the dimensions, a KL, a mask in a file; and how such a wish is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from ..model.hvae import HVAE
from .kl_stats import KLStats
from .mask import Count, Granularity, LatentMask, load_mask


@dataclass(frozen=True)
class Cutoff:
    """A mask and what was asked for."""

    rule: str
    """What was asked for: `3%`, `0.01 bits`, `tolerance 0.5%`, `mask.json`."""
    keep: float
    """Share of the dimensions (or variates) asked for; where none was, the share of the dimensions kept."""
    mask: LatentMask
    note: str = ""
    """A sentence where the mask keeps more than was asked for, else empty."""


def cutoff_at_keep(
    stats: KLStats, keep: float, granularity: Granularity = "variate", count: Count = "dimensions"
) -> Cutoff:
    """The cutoff of a keep fraction (0 to 1); raises `UsageError` like `LatentMask.from_keep`."""
    mask = LatentMask.from_keep(stats, keep, granularity=granularity, count=count)
    what = "latent dimension" if granularity == "position" else "variate"
    note = ""
    if count == "dimensions" and mask.kept_dims > math.floor(keep * mask.dims + 1e-6):
        share = f"{100 * mask.kept_share:.2g}% of the dimensions, more than {100 * keep:g}%"
        note = f"The highest-ranked {what} alone holds {share}; kept it."
    return Cutoff(f"{100 * keep:g}%", keep, mask, note)


def cutoff_at_bits(stats: KLStats, bits: float, granularity: Granularity = "variate") -> Cutoff:
    """The cutoff at a KL in bits per latent dimension; raises `UsageError` where nothing is above it."""
    mask = LatentMask.from_cutoff(stats, bits, granularity=granularity)
    return Cutoff(f"{bits:g} bits", mask.kept_share, mask)


def cutoff_of_file(model: HVAE, path: Path) -> Cutoff:
    """The mask in a file; raises `ModelError` where it is missing or damaged, `UsageError` where of another model."""
    mask = load_mask(path)
    try:
        mask.check_fits(model)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return Cutoff(path.name, mask.kept_share, mask)


def parse_keep(text: str) -> float:
    """A keep fraction from `3%` or `0.03`.

    >>> parse_keep("3%"), parse_keep("0.5")
    (0.03, 0.5)

    Raises `UsageError` where `text` is no number, or not above 0% and at most 100%.
    """
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        fraction = float(number) / (100.0 if percent else 1.0)
    except ValueError:
        raise UsageError(f"keep is {text!r}; give a share of the latent dimensions such as 3% or 0.03") from None
    if not 0.0 < fraction <= 1.0:
        raise UsageError(f"keep is {text}; it must be above 0% and at most 100%")
    return fraction


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
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        tolerance = float(number) / (100.0 if percent else 1.0)
    except ValueError:
        raise UsageError(f"the tolerance is {text!r}; give a share of the NELBO such as 0.5% or 0.005") from None
    if not 0.0 <= tolerance < 1.0:
        raise UsageError(f"the tolerance is {text}; it must be at least 0% of the NELBO and below 100%")
    return tolerance
