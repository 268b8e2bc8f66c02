"""Sentences about rankings and cutoffs: where they come from, what they keep, what that costs."""

from __future__ import annotations

import math

import pandas as pd
from scipy.stats import t as student_t

from ..analysis.cutoff_cost import ChosenCutoff, CutoffCost
from ..analysis.ranking_file import FoundRanking
from ..prune.cutoffs import TOLERANCE
from ..prune.mask import LatentMask
from ..prune.tolerance import Tolerated


def ranking_sentence(found: FoundRanking) -> str:
    """Say where a ranking is from."""
    if not found.is_new:
        images = "these training images" if found.is_of_these_images else "other images than these"
        return f"Ranking: {found.path}, of {found.stats.images:,} of {images}."
    made = f"The run had no ranking of this model; made one of {found.stats.images:,} training images"
    failed = f"could not be kept in {found.path} ({found.write_error})"
    return f"{made}; kept: {failed if found.write_error else found.path}." if found.path else f"{made}."


def choice_sentences(chosen: ChosenCutoff) -> list[str]:
    """Say how a cutoff was chosen, what it keeps, and what that costs if it was measured."""
    mask, choice = chosen.cutoff.mask, choice_sentence(chosen)
    last = cost_sentence(chosen.cost, mask) if chosen.cost else kept_sentence(mask)
    return [choice, last] if choice else [last]


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
    return (
        f"{kept_sentence(mask)}\n"
        f"NELBO {cost.kept:.3f} bits/dim against {cost.everything:.3f} with all: {change:+.5f}{error} "
        f"({100 * change / cost.everything:+.2f}%), on {cost.images:,} held-out images."
    )


def tolerance_sentence(found: Tolerated) -> str:
    """Say what was found for a tolerance, and how sure it is."""
    wanted, images = f"{100 * found.tolerance:g}%", f"{found.images:,} held-out images"
    if found.mask.kept_dims == found.mask.dims:
        return f"No smaller mask was found that loses at most {wanted} of the NELBO on {images}; kept all latents."
    share = f"{100 * found.mask.kept_share:.2f}% of the dimensions"
    loss = f"{100 * found.loss:+.3f}%"
    if math.isnan(found.confidence):
        return f"Tolerance {wanted}: {share} change the NELBO by {loss}, on {images}; one image gives no confidence."
    error = 100 * found.change_se / found.nelbo
    confidence = f"{100 * found.confidence:.0f}%" if found.confidence < 0.99 else "more than 99%"
    return (
        f"Tolerance {wanted}: {share} change the NELBO by {loss} ± {error:.3f}%, below {wanted} with {confidence} "
        f"confidence, on the {images} that it was chosen on."
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
    return f"{change}: {errors:.1f} standard errors, {sure} at the 5% level for the best of {len(rows)} cutoffs."
