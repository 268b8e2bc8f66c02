"""The steps of a slider through the latent groups that a store keeps something of."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from ..store.reader import Store

MOST_STEPS = 23  # beyond no latents at all; deeper models take several groups in a step


@dataclass(frozen=True)
class GroupStep:
    """The groups whose latents are decoded at one place of the slider, and not yet at the one before."""

    name: str  # such as "group 3"; "none" of the first step
    resolution: str  # height and width of these groups, such as "8 × 8"
    end: int  # groups before this one, counted in top-down order, are decoded
    added: int  # latent dimensions of an image that are kept of these groups
    kept: int  # of all groups so far


def group_steps(store: Store) -> list[GroupStep]:
    """Divide the groups that something is kept of into steps, in top-down order; the first step has none."""
    kept, resolution_of = _kept_dims(store), _resolutions(store)
    groups = sorted(kept)
    steps, total = [GroupStep("none", "", 0, 0, 0)], 0
    for part in np.array_split(groups, min(len(groups), MOST_STEPS)):
        first, last = int(part[0]), int(part[-1])
        added = sum(kept[group] for group in part.tolist())
        total += added
        name = f"group {first}" if first == last else f"groups {first} to {last}"
        sizes = dict.fromkeys(f"{size} × {size}" for size in (resolution_of[first], resolution_of[last]))
        steps.append(GroupStep(name, " to ".join(sizes), last + 1, added, total))
    return steps


def _kept_dims(store: Store) -> dict[int, int]:
    """Count the latent dimensions of an image that are kept of each group."""
    positions = {r: r * r if store.columns.granularity == "variate" else 1 for r in store.resolutions}
    counts: Counter[int] = Counter()
    for resolution in store.resolutions:
        groups, columns = np.unique(store.columns.coordinates[resolution][:, 0], return_counts=True)
        counts.update(dict(zip(groups.tolist(), (columns * positions[resolution]).tolist(), strict=True)))
    return counts


def _resolutions(store: Store) -> dict[int, int]:
    """Give the height and width of each group that something is kept of."""
    return {int(group): r for r in store.resolutions for group in np.unique(store.columns.coordinates[r][:, 0])}
