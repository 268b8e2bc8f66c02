"""Images of a store to look at: some of each label, and those with the largest and smallest of a figure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..store.reader import Store
from ..texts.classes import ClassTexts

SAMPLED = 96  # images, all labels together, at most
OF_A_LABEL = 12  # at most, if there are several labels


@dataclass(frozen=True)
class LabelSample:
    """Some of the images of a label."""

    label: str
    count: int  # images that have it
    images: tuple[int, ...]  # some of these, by number


@dataclass(frozen=True)
class Extremes:
    """Images with the largest and the smallest of a figure, by number."""

    name: str
    known: int  # images that have the figure
    median: float
    highest: tuple[int, ...]  # the largest first
    lowest: tuple[int, ...]  # the smallest first
    values: dict[int, float]  # of these images


def sample_labels(store: Store, seed: int) -> list[LabelSample]:
    """Draw images of each label, in the labels' order; of more than `SAMPLED` labels, one of some of these.

    `seed` draws both. A store without labels is one sample, of the label "".
    """
    labels, random = ClassTexts.of(store.labels), np.random.default_rng(seed)
    names = sorted(labels.distinct())
    chosen = names
    if len(names) > SAMPLED:
        chosen = [names[place] for place in np.sort(random.choice(len(names), SAMPLED, replace=False))]
    each = SAMPLED if len(names) == 1 else min(OF_A_LABEL, SAMPLED // max(len(chosen), 1))
    codes = {name: code for code, name in enumerate(labels.classes)}
    samples = []
    for name in chosen:
        members = np.flatnonzero(labels.codes == codes[name])
        drawn = random.choice(members, min(each, len(members)), replace=False)
        samples.append(LabelSample(name, len(members), tuple(np.sort(drawn).tolist())))
    return samples


def find_extremes(store: Store, name: str, count: int) -> Extremes | None:
    """Find the `count` images with the largest of the per-image figure `name`, and as many with the smallest.

    No image is among both. None if the store does not have the figure, or of no image. Raises `StoreError` if it is
    damaged.
    """
    if name not in store.per_image_names:
        return None
    values = store.per_image(name)
    if values.dtype.kind not in "fiu" or not np.isfinite(values).any():  # one that a user has added
        return None
    known = np.flatnonzero(np.isfinite(values))
    order = known[np.argsort(values[known], kind="stable")]
    lowest = order[: min(count, len(order) // 2)]
    highest = order[::-1][: min(count, len(order) - len(order) // 2)]
    return Extremes(
        name=name,
        known=len(known),
        median=float(np.median(values[known])),
        highest=tuple(highest.tolist()),
        lowest=tuple(lowest.tolist()),
        values={int(image): float(values[image]) for image in (*highest, *lowest)},
    )
