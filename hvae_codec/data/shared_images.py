"""Refuses held-out images that are training images, too: of two sources, nobody has sorted them apart."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DataError, UsageError
from ..storage.bucket import BucketLocation
from ..storage.location import AnyPath
from .containers import Container
from .folders import Folder

if TYPE_CHECKING:
    from .sources import ImageSource

COMPARED = 64  # images of the same name and size in bytes whose pixels are compared, at most

_ADVICE = "nothing that is held out may be trained on, so give other images"


def check_two_sources(data: ImageSource, val: ImageSource) -> None:
    """Raise `UsageError` if both are opened from the same place."""
    one, other = data.container.path, val.container.path
    if data.container is val.container or _are_one(one, other):
        raise UsageError(
            f"the held-out images {other} are the training images themselves; {_ADVICE}, or leave out --val"
        )


def check_nothing_shared(training: ImageSource, held_out: ImageSource) -> None:
    """Raise `DataError` if an image lies in both, or if they are copies of each other as far as is cheap to see.

    Links, of both kinds, are followed. Names and sizes are compared of all; pixels of up to `COMPARED` images whose
    names and sizes are the same.
    """
    if _may_overlap(training.container, held_out.container):
        _check_locations(training, held_out)
    pairs = _same_names_and_sizes(training, held_out)
    if not pairs:
        return
    chosen = [pairs[i] for i in np.linspace(0, len(pairs) - 1, min(COMPARED, len(pairs))).astype(int)]
    same = [(i, j) for i, j in chosen if _has_same_pixels(training, i, held_out, j)]
    if 2 * len(same) > len(chosen):  # a blank image may be in both
        i, j = same[0]
        one, other = training.container.path / training.names[i], held_out.container.path / held_out.names[j]
        raise DataError(f"{other} is the same image as {one}, and so are others; {_ADVICE}")


def _are_one(one: AnyPath, other: AnyPath) -> bool:
    if isinstance(one, Path) and isinstance(other, Path) and one.exists() and other.exists():
        return os.path.samefile(one, other)
    return isinstance(one, BucketLocation) and one == other


def _overlap(some: Iterable[PurePath], others: Iterable[PurePath]) -> bool:
    """Whether one of some files and folders is, or lies in, one of the others, or the other way round."""
    first, second = {*some}, {*others}
    return any({root, *root.parents} & second for root in first) or any({*root.parents} & first for root in second)


def _may_overlap(one: Container, other: Container) -> bool:
    """Whether files of one container may be those of the other: links lead from any folder into any other."""
    return (isinstance(one, Folder) and isinstance(other, Folder)) or _overlap(one.roots, other.roots)


def _check_locations(training: ImageSource, held_out: ImageSource) -> None:
    one, other = training.container.path, held_out.container.path
    of_a_size = np.isin(training.file_bytes, held_out.file_bytes)  # to look at one file takes microseconds
    first = training.container.locations(training.positions[of_a_size])
    second = held_out.container.locations(held_out.positions)
    if first is None or second is None:
        raise DataError(f"{one} and {other} are files of one set, so they may share images; {_ADVICE}")
    places = {*first}
    shared = [i for i, place in enumerate(second) if place in places]
    if shared:
        images = f"{len(shared):,} of the {len(held_out):,} held-out images"
        example = other / held_out.names[shared[0]]
        raise DataError(f"{images}, such as {example}, are training images in {one}, too; {_ADVICE}")


def _same_names_and_sizes(training: ImageSource, held_out: ImageSource) -> list[tuple[int, int]]:
    """Find pairs of a training and a held-out image whose files have the same name, in any folder, and size."""
    of_held_out = {key: i for i, key in enumerate(_names_and_sizes(held_out))}
    return [(i, of_held_out[key]) for i, key in enumerate(_names_and_sizes(training)) if key in of_held_out]


def _has_same_pixels(training: ImageSource, i: int, held_out: ImageSource, j: int) -> bool:
    try:
        return bool((training.read([i]) == held_out.read([j])).all())
    except DataError:  # whoever needs the image says so
        return False


def _names_and_sizes(source: ImageSource) -> Iterable[tuple[str, int]]:
    sizes = source.container.file_bytes[source.positions].tolist()
    return ((name.rpartition("/")[2], size) for name, size in zip(source.names, sizes, strict=True))
