"""Sentences about rankings and cutoffs, for the terminal and the page: what they are from, keep and cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from scipy.stats import t as student_t

from ..analysis.cutoff_cost import ChosenCutoff, CutoffCost
from ..analysis.ranking_file import FoundRanking, KeptRanking
from ..prune.cutoffs import TOLERANCE
from ..prune.mask import LatentMask
from ..prune.tolerance import Tolerated
from .counts import count
from .cutoffs import Row, percent
from .splits import count_images, image_kind
from .step_sentences import step_sentence, stored_sentence

CLEAR_ERRORS = 2.0  # a paired change of at least so many standard errors is called a change
CLOSE_TO_ALL = 0.01  # a NELBO is close to that of all latents within this share of it


def ranking_sentence(found: FoundRanking) -> str:
    """Say where a ranking is from."""
    if not found.is_new:
        others = "images that are not these training images, or are in another container; analyze-kl ranks on these"
        images = "of these training images" if found.is_of_these_images else others
        return f"Ranking: {found.path}, of {found.stats.images:,} {images}."
    made = f"The run had no ranking of this model; made one of {count(found.stats.images, 'training image')}"
    failed = f"could not be kept in {found.path} ({found.write_error})"
    return f"{made}; kept: {failed if found.write_error else found.path}." if found.path else f"{made}."


def kept_ranking_sentence(kept: KeptRanking) -> str:
    """Say where a ranking was stored, that one of before was replaced, or that it stays and how to replace it."""
    if kept.write_error:
        return f"could not be kept in {kept.path} ({kept.write_error})"
    if kept.stays:
        before, new = (count(images, "image") for images in (kept.stays.images, kept.images))
        return f"{kept.path}, of before: it is of {before}, and this one of {new}; --overwrite stores this one"
    return f"{kept.path}" + (f", in place of one of {count(kept.replaced.images, 'image')}" if kept.replaced else "")


def choice_sentences(chosen: ChosenCutoff) -> list[str]:
    """Say how a cutoff and its step were chosen, what is kept, and what that costs if it was measured."""
    mask, cost = chosen.cutoff.mask, chosen.cost
    kept = [cost_sentence(cost, mask) if cost else kept_sentence(mask)]
    step = [step_sentence(chosen.codec)] if chosen.codec else []
    stored = [stored_sentence(cost.stored, cost.images, chosen.codec)] if cost else []
    return [sentence for sentence in (choice_sentence(chosen), *kept, *step, *stored) if sentence]


def choice_sentence(chosen: ChosenCutoff) -> str:
    """Say what a search for a tolerance found, or that more is kept than was asked for; empty if neither."""
    return tolerance_sentence(chosen.tolerated) if chosen.tolerated else chosen.cutoff.note


def kept_sentence(mask: LatentMask) -> str:
    """Say what a mask keeps."""
    of = f"{mask.kept_variates} variates" + (", in part" if mask.granularity == "position" else "")
    return f"Kept {mask.kept_dims:,} of {mask.dims:,} latent dimensions ({100 * mask.kept_share:.2f}%, {of})."


def cost_sentence(cost: CutoffCost, mask: LatentMask) -> str:
    """Say what a mask keeps and what that costs."""
    change = cost.kept - cost.everything
    error = "" if math.isnan(cost.change_se) else f" ± {cost.change_se:.5f}"
    if change == 0.0:  # all that is there
        images = count_images(cost.images, cost.held_out)
        return f"{kept_sentence(mask)}\nNELBO {cost.kept:.3f} bits/dim on {images}, with all latents that the run has."
    return (
        f"{kept_sentence(mask)}\n"
        f"NELBO {cost.kept:.3f} bits/dim against {cost.everything:.3f} with all: {change:+.5f}{error} "
        f"({100 * change / cost.everything:+.2f}%), on {count_images(cost.images, cost.held_out)}."
    )


def tolerance_sentence(found: Tolerated) -> str:
    """Say what was found for a tolerance, and how sure it is."""
    wanted, images = f"{100 * found.tolerance:g}%", count_images(found.images, found.held_out)
    if found.mask.kept_dims == found.mask.dims:
        return f"No smaller mask was found that loses at most {wanted} of the NELBO on {images}; kept all latents."
    change = f"{100 * found.mask.kept_share:.2f}% of the dimensions change the NELBO by {100 * found.loss:+.3f}%"
    if math.isnan(found.confidence):
        return f"Tolerance {wanted}: {change}, on {images}; one image gives no confidence."
    error = 100 * found.change_se / found.nelbo
    confidence = f"{100 * found.confidence:.0f}%" if found.confidence < 0.99 else "more than 99%"
    return (
        f"Tolerance {wanted}: {change} ± {error:.3f}%, below {wanted} with {confidence} confidence, "
        f"on the {images} that it was chosen on."
    )


def best_sentence(table: pd.DataFrame, images: int) -> str:
    """Say whether a cutoff of the table improves the bound, and by how many standard errors over `images`.

    Those found for a tolerance are left out: many were tried to find one. Empty if no cutoff is left.
    """
    rows = table[(table["kept_dims"] < table["dims"]) & ~table["rule"].str.startswith(TOLERANCE)]
    if rows.empty:
        return ""
    best = rows.iloc[int(rows["nelbo_change"].argmin())]
    if best["nelbo_change"] >= 0:
        return "No cutoff improves the bound."
    change = f"{best['rule']} improves the bound by {-best['nelbo_change']:.5f} bits/dim"
    if math.isnan(best["nelbo_change_se"]):
        return f"{change}; one image says nothing about others."
    errors = -best["nelbo_change"] / max(best["nelbo_change_se"], 1e-12)
    critical = student_t.isf(0.05 / len(rows), images - 1)  # Bonferroni, one-sided
    sure = "significant" if errors > critical else "which may be chance"
    return (
        f"{change}: {errors:.1f} standard errors, {sure} at the 5% level for the best of {count(len(rows), 'cutoff')}."
    )


def cutoff_sentences(row: Row, kl_share: float) -> str:
    """Say what one cutoff keeps, which holds the share `kl_share` of the KL, what it costs, and what it takes."""
    kept, dims = row["kept_dims"], row["dims"]
    share = f"({percent(kept / dims)}): they hold {100 * kl_share:.1f}% of the KL."
    some = f"{kept:,} of {dims:,} latent dimensions are kept {share}"
    what = some if kept < dims else f"All {dims:,} latent dimensions are kept."
    return (
        f"{what} The NELBO is {row['nelbo']:.3f} bits/dim{_change(row)} "
        f"An image is stored in {row['bytes']:,.0f} bytes ({row['bits_per_dim']:.3f} bits/dim) "
        f"and decoded at {row['psnr']:.2f} dB PSNR, SSIM {row['ssim']:.3f}{_described(row)}."
    )


def _described(row: Row) -> str:
    """Say what is stored and missing, if the table has it: tables of before have not."""
    if "description_length" not in row:
        return ""
    step = f" (step {row['step']:g})" if "step" in row else ""
    total = f"stored and decoded it takes {row['description_length']:.3f} bits/dim"
    return f"; {total} with {row['closed_loop']:.3f} of distortion{step}"


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
        "split": about.get("split"),
        f"{image_kind(about.get('held_out', True))} images".strip(): _images(about.get("images"), about.get("source")),
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
