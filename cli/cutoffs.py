"""Reads cutoffs as they are typed: `3%`, `3%,10%`, `0.01`, `0.5%`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hvae_codec.errors import UsageError

if TYPE_CHECKING:
    from hvae_codec.prune.cutoffs import CutoffSpec
    from hvae_codec.prune.kl_stats import Granularity
    from hvae_codec.prune.mask import Count

DEFAULT_KEEP = 0.03
"""Share of the latent dimensions, that of the paper's section 7, if no cutoff is given."""


def joined(values: Sequence[str] | None) -> str:
    """Join what an option that takes several values was given, be it at once or one by one.

    >>> joined(["3%,5%", "10%"]), joined(None)
    ('3%,5%,10%', '')
    """
    return ",".join(values or ())


def parse_cutoffs(
    keep: str = "",
    bits: str = "",
    tolerance: str = "",
    files: Sequence[Path] = (),
    granularity: Granularity = "variate",
    count: Count = "dimensions",
    *,
    is_default: bool = False,
) -> list[CutoffSpec]:
    """Read lists of values separated by commas: `3%,10%`, `0.01,0.1`, `0.5%`; and masks in `files`.

    `is_default` says that nobody asked for the shares. Raises `UsageError` if one cannot be read.
    """
    from hvae_codec.prune.cutoffs import CutoffSpec

    keeps = sorted({parse_keep(part) for part in _parts(keep)})
    if count == "variates" and (bits or tolerance or files) and not keeps:
        raise UsageError("--count variates is for --keep of whole variates; leave one of the two out")
    return [
        *(CutoffSpec(keep=k, granularity=granularity, count=count, is_default=is_default) for k in keeps),
        *(CutoffSpec(bits=kl, granularity=granularity) for kl in sorted(set(map(parse_bits, _parts(bits))))),
        *(
            CutoffSpec(tolerance=loss, granularity=granularity)
            for loss in sorted(set(map(parse_tolerance, _parts(tolerance))))
        ),
        *(CutoffSpec(file=file, granularity=granularity) for file in files),
    ]


def parse_cutoff(
    keep: str = "",
    bits: str = "",
    tolerance: str = "",
    file: Path | None = None,
    granularity: Granularity = "variate",
    count: Count = "dimensions",
) -> CutoffSpec:
    """Read the one cutoff among these, or take 3% of the dimensions; raises `UsageError` if several are given."""
    from hvae_codec.prune.cutoffs import CutoffSpec

    specs = parse_cutoffs(keep, bits, tolerance, [] if file is None else [file], granularity, count)
    if len(specs) > 1:
        raise UsageError("several cutoffs are asked for; give one of --keep, --cutoff, --tolerance and --mask")
    return specs[0] if specs else CutoffSpec(keep=DEFAULT_KEEP, granularity=granularity, count=count, is_default=True)


def _parts(text: str) -> list[str]:
    return text.split(",") if text else []


def parse_keep(text: str) -> float:
    """Read a keep fraction from `3%` or `0.03`.

    >>> parse_keep("3%"), parse_keep("0.5")
    (0.03, 0.5)

    Raises `UsageError` if `text` is no number, or not above 0% and at most 100%.
    """
    fraction = read_share(text, "keep", "give a share of the latent dimensions such as 3% or 0.03")
    if not 0.0 < fraction <= 1.0:
        raise UsageError(f"keep is {text}; it must be above 0% and at most 100%")
    return fraction


def parse_share(text: str) -> float:
    """Read a share of a run's steps from `30%` or `0.3`; more than all are possible.

    >>> parse_share("30%"), parse_share("200%")
    (0.3, 2.0)

    Raises `UsageError` if `text` is no number above 0%, or above 10,000%.
    """
    share = read_share(text, "the share", "give a share of the run's steps such as 30% or 0.3")
    if not 0.0 < share <= 100.0:
        raise UsageError(f"the share is {text}; it must be above 0% of the run's steps and at most 10,000%")
    return share


def read_share(text: str, name: str, advice: str) -> float:
    """Read a percentage or a fraction; a whole number could be meant as either."""
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    if re.fullmatch("[1-9][0-9]*", number) and not percent:
        everything = ", or 1.0 for all" if number == "1" else ""
        raise UsageError(f"{name} is {text}, perhaps a percentage; give {text}%{everything}")
    try:
        return float(number) / (100.0 if percent else 1.0)
    except ValueError:
        raise UsageError(f"{name} is {text!r}; {advice}") from None


def parse_bits(text: str) -> float:
    """Read a KL cutoff in bits per latent dimension; raises `UsageError` if `text` is no finite number."""
    try:
        bits = float(text)
    except ValueError:
        bits = math.nan
    if not math.isfinite(bits):
        raise UsageError(f"the cutoff is {text!r}; give bits per latent dimension such as 0.01")
    return bits


def parse_tolerance(text: str) -> float:
    """Read a tolerated loss of NELBO as a share of it, from `0.5%` or `0.005`.

    >>> parse_tolerance("0.5%")
    0.005

    Raises `UsageError` if `text` is no number, or not at least 0% and below 100%.
    """
    tolerance = read_share(text, "the tolerance", "give a share of the NELBO such as 0.5% or 0.005")
    if not 0.0 <= tolerance < 1.0:
        raise UsageError(f"the tolerance is {text}; it must be at least 0% of the NELBO and below 100%")
    return tolerance
