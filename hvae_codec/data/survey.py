"""What the images of a source are, by their heads: sizes, modes, formats, classes, and what could not be used.

source ── up to 10,000 heads, evenly spaced ──> Survey      nothing is decoded, and nothing is written
"""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ..lookahead import map_ahead
from ..progress import Progress
from .containers import Container, DecodingContainer
from .heads import ImageHead
from .pixels import UnusableImageError
from .sources import ImageSource
from .splits import PARTS

HEADS = 10_000  # images whose heads are read, at most: a million takes minutes


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What was found; sizes, modes, formats, refusals and changes are of the images looked at, all else is of all."""

    images: int  # of the source
    looked_at: int  # images of which the beginning was read
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # width and height, pixels
    modes: Counter[str] = field(default_factory=Counter)  # grey, colour, palette with alpha, ...
    formats: Counter[str] = field(default_factory=Counter)  # PNG, JPEG, ..., by how the files begin
    endings: Mapping[str, int]  # of the names, with the dot, in lower case; "" if a name has none
    classes: Mapping[str, int]  # by label; "" if an image has none
    splits: Mapping[str, int]  # train, val, test, and others: images of the whole source in each
    refused: Mapping[str, Sequence[str]] = field(default_factory=dict)  # reason to names of images that cannot be used
    skipped: Mapping[str, str]  # names of those that were left out already, and why
    changes: Counter[str] = field(default_factory=Counter)  # what preprocessing does, to how many: see `changes_of`
    passed_over: Sequence[str]  # folders with results of this package
    other_files: Mapping[str, int]  # ending to number of files that are not read


def survey(
    images: ImageSource, whole: ImageSource | None = None, *, limit: int = HEADS, progress: Progress | None = None
) -> Survey:
    """Read the heads of up to `limit` of `images`; `whole` is the source that they are a part of.

    They are evenly spaced. Of images that are read in groups, those of some whole groups are looked at.

    An image whose head is good may still be damaged further on; only decoding it tells.
    """
    whole, sample = whole or images, _sample(images, limit)
    sizes, modes, formats, changes = Counter[tuple[int, int]](), Counter[str](), Counter[str](), Counter[str]()
    refused: dict[str, list[str]] = {}
    for done, (name, (head, reason)) in enumerate(zip(sample.names, _heads(sample), strict=True), 1):
        if head is not None:
            sizes[head.width, head.height] += 1
            modes[head.mode] += 1
            formats[head.format] += 1
        if reason:
            refused.setdefault(reason, []).append(name)
        elif head is not None:
            changes.update(changes_of(head, sample))
        if progress is not None:
            progress(done, len(sample))
    return Survey(
        images=len(images),
        looked_at=len(sample),
        sizes=sizes,
        modes=modes,
        formats=formats,
        endings=Counter(posixpath.splitext(name)[1].lower() for name in images.names),
        classes=Counter(images.labels),
        splits=split_counts(whole),
        refused=refused,
        skipped=whole.skipped,
        changes=changes,
        passed_over=whole.container.passed_over,
        other_files=whole.container.other_files,
    )


def changes_of(head: ImageHead, source: ImageSource) -> list[str]:
    """Name what is done to an image of that head: resized, enlarged, alpha, recoloured, depth, first frame."""
    how = source.preprocessing
    width, height = how.box[2:] if how.box else (head.width, head.height)
    done = {
        "resized": (head.width, head.height) != (source.size, source.size),
        "enlarged": min(width, height) < source.size,
        "alpha": head.alpha,
        "recoloured": head.channels != source.channels,
        "depth": head.deep,
        "first frame": head.more_frames,
    }
    return [name for name, is_done in done.items() if is_done]


def split_counts(source: ImageSource) -> dict[str, int]:
    """Count the images of each split, and of none; those for validation are the test images if there are no others.

    Of a source that is held out, or not, whole, all are of one split.
    """
    splits = source.splits
    if source.held_out is not None and not splits.folders:
        return {"val" if source.held_out else "train": len(source)}
    if not splits.is_held_out:
        return {"train": len(splits.train)}
    counts: dict[str, int] = {part: len(splits.indices(part)) for part in PARTS}
    tested = counts["test"] if splits.folders.get("val") else 0
    counts["test"] = tested
    others = len(source) - sum(counts.values())
    return {name: number for name, number in {**counts, "others": others}.items() if number}


def _sample(images: ImageSource, limit: int) -> ImageSource:
    """Choose up to `limit` images, evenly spaced, or those of groups that are: a group is read for each image in it."""
    groups = images.groups
    if groups is None or len(images) <= limit:
        return images.evenly(limit)
    used, of = np.unique(groups.of, return_inverse=True)
    count = max(1, limit * len(used) // len(images))
    chosen = np.linspace(0, len(used) - 1, count).round()
    return images.subset(np.flatnonzero(np.isin(of, chosen))[:limit])


def _heads(sample: ImageSource) -> Generator[tuple[ImageHead | None, str]]:
    look, threads = partial(_look, sample.container), min(8, os.cpu_count() or 1)
    parts = sample.container.announced(sample.positions, threads)
    positions = (position for part in parts for position in part.tolist())
    return map_ahead(look, positions, threads=threads, waiting=16 * threads, name="read heads")


def _look(container: Container, position: int) -> tuple[ImageHead | None, str]:
    """Read the head of an image, and find out why it cannot be used, if it cannot be."""
    try:
        head = container.head(position)
    except UnusableImageError as error:
        return None, error.reason
    how = container.preprocessing
    return head, head.too_much(how) or _wrong_channels(head, container) or head.too_small(container.size, how)


def _wrong_channels(head: ImageHead, container: Container) -> str:
    if head.channels == container.channels or not isinstance(container, DecodingContainer):
        return ""
    if container.channels in (1, 3) and head.channels in (1, 3) and container.takes_other_channels:
        return ""
    return {1: "grey", 3: "colour"}.get(head.channels, "of other channels")
