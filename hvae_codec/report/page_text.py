"""What the page says in words: of one cutoff, of all of them, and of how they were measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .cutoffs import Row

CLEAR_ERRORS = 2.0  # a paired change of at least so many standard errors is called a change
CLOSE_TO_ALL = 0.01  # a NELBO is close to that of all latents within this share of it


def percent(share: float) -> str:
    """Write a share, 0 to 1, with three significant digits.

    >>> percent(0.03), percent(0.025791), percent(1.0)
    ('3%', '2.58%', '100%')
    """
    return f"{100 * share:.3g}%"


def cutoff_sentences(row: Row, kl_share: float) -> str:
    """Say what one cutoff keeps, which holds the share `kl_share` of the KL, what it costs, and what it takes."""
    kept, dims = row["kept_dims"], row["dims"]
    share = f"({percent(kept / dims)}): they hold {100 * kl_share:.1f}% of the KL."
    what = f"All {dims:,} latent dimensions are kept."
    if kept < dims:
        what = f"{kept:,} of {dims:,} latent dimensions are kept {share}"
    return (
        f"{what} The NELBO is {row['nelbo']:.3f} bits/dim{_change(row)} "
        f"An image is stored in {row['bytes']:,.0f} bytes ({row['bits_per_dim']:.3f} bits/dim) "
        f"and decoded at {row['psnr']:.2f} dB PSNR, SSIM {row['ssim']:.3f}."
    )


def _change(row: Row) -> str:
    change, error = row["nelbo_change"], row["nelbo_change_se"]
    if change == 0:
        return "."
    size = f"{abs(change):.5f}" if math.isnan(error) else f"{abs(change):.5f} ± {error:.5f}"
    relative = 100 * abs(change) / abs(row["nelbo"] - change)
    text = f", {size} ({relative:.2f}%) {'above' if change > 0 else 'below'} that of all latents"
    if math.isnan(error):
        return f"{text} (one image: no standard error)."
    return f"{text}." if abs(change) >= CLEAR_ERRORS * error else f"{text}: no clear difference."


def smallest_close(rows: Sequence[Row], kl_shares: Sequence[float]) -> str:
    """Say which is the smallest cutoff whose NELBO is within `CLOSE_TO_ALL` of that of all latents; `rows` ascend."""
    limit = f"{100 * CLOSE_TO_ALL:g}%"
    for row, kl_share in zip(rows, kl_shares, strict=True):
        kept, dims = row["kept_dims"], row["dims"]
        if row["nelbo_change"] > CLOSE_TO_ALL * abs(row["nelbo"] - row["nelbo_change"]):
            continue
        if kept == dims:
            return f"No smaller cutoff has a NELBO within {limit} of that of all latents."
        return (
            f"{percent(kept / dims)} of the latent dimensions ({kept:,} of {dims:,}) suffice for a NELBO "
            f"within {limit} of that of all; they hold {100 * kl_share:.1f}% of the KL."
        )
    return f"At none of these cutoffs is the NELBO within {limit} of that of all latents."


def measured(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List names and values of what the figures depend on; what `about` lacks is left out."""
    codec = [value if key == "name" else f"{key} {value}" for key, value in about.get("codec", {}).items()]
    named = {
        "model": about.get("model_hash"),
        "held-out images": _images(about.get("images"), about.get("source")),
        "images encoded and decoded": about.get("pictures"),
        "images ranked on": _images(about.get("ranking_images"), about.get("ranking_source")),
        "codec": ", ".join(codec) or None,
        "granularity": about.get("granularity"),
        "a share counts": about.get("count"),
        "seed": about.get("seed"),
    }
    return [(name, str(value)) for name, value in named.items() if value is not None]


def _images(count: int | None, fingerprint: str | None) -> str | None:
    """Say how many images, and which: the beginning of their fingerprint."""
    return None if count is None else f"{count:,}" + (f" (fingerprint {fingerprint[:12]})" if fingerprint else "")
