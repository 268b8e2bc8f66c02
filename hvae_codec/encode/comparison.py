"""What is new, changed and gone in images since a store was made of them; takes neither the model nor torch.

    names            in the images alone: new; in the store alone: gone
    bytes            under the same name: changed if their size or their CRC-32 is another one
    bytes            of a new and of a gone name: renamed if they are the same, and no others are

Names and CRC-32s are compared as arrays of numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ..data.content import content_checksums
from ..data.datasets import is_dataset
from ..data.name_digests import find_digests, name_digests
from ..data.sources import Images, ImageSource, as_source
from ..errors import DataError
from ..progress import Progress
from ..storage.location import LocationLike
from ..store.reader import Store
from ..store.rowgroups import RowGroups
from .stored_preprocessing import check_preprocessing

Numbers = NDArray[np.int64]

CHANCE_PAIRS = 4096
"""Pairs of files of the same size, in all of which CRC-32 is the same by chance once in a million times. Beyond it, a
renamed file is known if it has kept the last part of its name."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """What of some images is in a store, and what is not."""

    source: ImageSource  # the images
    store: Store  # what they are compared with
    rows: Numbers  # row of the store that holds each image as it is now, int64 [N]; -1 if none does
    new: Numbers  # numbers of the images that the store does not hold
    changed: Numbers  # numbers of the images whose bytes are not those that were encoded under their name
    renamed: Numbers  # numbers of the images that the store holds under another name
    relabelled: Numbers  # numbers of the images that have another class or split than in the store
    gone: Numbers  # rows of the store whose images are not among these under any name

    @property
    def differs(self) -> bool:
        """Whether the store is not one of these images as they are."""
        return any(len(part) for part in (self.new, self.changed, self.renamed, self.relabelled, self.gone))

    @property
    def knows_bytes(self) -> bool:
        """Whether the store has checksums, without which no image is known to have changed."""
        return self.store.metadata.has_records

    @property
    def row_groups(self) -> RowGroups:
        """Row groups of a store of these images."""
        return RowGroups(len(self.rows), self.store.row_groups.size)

    @property
    def lost_source(self) -> range | None:
        """The rows of one of the sources that were appended to one another, if all of its images are gone."""
        first = 0
        for part in self.store.metadata.source.parts:
            rows = range(first, first + part.images)
            if np.subtract(*np.searchsorted(self.gone, [rows.stop, rows.start])) == len(rows):  # they ascend
                return rows
            first = rows.stop
        return None

    @cached_property
    def encoded(self) -> Numbers:
        """Numbers of the images that have to be encoded for it."""
        return np.flatnonzero(self.rows < 0)

    @property
    def encoded_row_groups(self) -> int:
        """Count its row groups with images that have to be encoded."""
        return len(np.unique(self.encoded // self.row_groups.size))

    @cached_property
    def kept_row_groups(self) -> dict[int, int]:
        """Its row groups that are whole ones of the old store, and the numbers that they have there."""
        found = {row_group: self._old_row_group(row_group) for row_group in range(len(self.row_groups))}
        return {new: old for new, old in found.items() if old is not None}

    def _old_row_group(self, row_group: int) -> int | None:
        numbers = self.row_groups.rows(row_group)
        rows = self.rows[numbers.start : numbers.stop]
        old, offset = divmod(int(rows[0]), self.row_groups.size)
        if rows[0] < 0 or offset or len(self.store.row_groups.rows(old)) != len(rows) or (np.diff(rows) != 1).any():
            return None
        return old


def compare(
    images: Images, store: Store | LocationLike, *, check: bool = False, progress: Progress | None = None
) -> Comparison:
    """Find out which of `images`, all that the store should hold, it holds as they are now, and what has changed.

    Bytes are read only of images that are in the store with the same name and size, or may be renamed; and of these
    only if it is not remembered that their files are as they were, or with `check` (see `content_checksums`).
    `progress` is called with the images read and those to read. Stores of versions below 4 have no checksums: names
    alone are compared then. Raises `DataError` if the images are of another size or colour than the store's, were
    opened with other preprocessing, or one cannot be read; `StoreError` if there is no store or it is damaged.
    """
    source, opened = as_source(images), store if isinstance(store, Store) else Store.open(store)
    _check_alike(source, opened)
    if isinstance(images, ImageSource) or is_dataset(images):  # an array in memory is as it is
        check_preprocessing(source, opened.metadata, opened.path)
    named = find_digests(name_digests(source.names), name_digests(opened.names))
    if not opened.metadata.has_records:
        return _comparison(source, opened, named, named, {})
    content = _Content(source, opened, check, progress)
    rows = np.where(content.is_same(named), named, -1)
    return _comparison(source, opened, named, rows, content.moved(named))


def lost_source_sentence(found: Comparison) -> str:
    """Say that all images of a source that was appended are gone, and which DATA would have them; else empty."""
    rows, store = found.lost_source, found.store
    if rows is None:
        return ""
    parts = len(store.metadata.source.parts)
    return (
        f"{store.path} was made of {parts} sources, and all {len(rows):,} images of one, such as "
        f"{store.names[rows.start]}, are gone; give the images of all sources, in one folder under the names that the "
        "store has (links to folders will do)"
    )


def _comparison(source: ImageSource, store: Store, named: Numbers, rows: Numbers, moved: dict[int, int]) -> Comparison:
    """Sort images, given the row of the same name, and of the same bytes, and the rows of those that were moved."""
    renamed = np.array([*moved], np.int64)
    changed, relabelled = np.flatnonzero((named >= 0) & (rows < 0)), _relabelled(source, store, rows)
    new = np.setdiff1d(np.flatnonzero(named < 0), renamed)
    rows = rows.copy()
    rows[renamed] = [*moved.values()]
    gone = np.setdiff1d(np.arange(len(store)), np.concatenate([named, rows[renamed]]))
    return Comparison(source, store, rows, new, changed, np.sort(renamed), relabelled, gone)


def _check_alike(source: ImageSource, store: Store) -> None:
    found, stored = (source.size, source.channels), (store.metadata.image.size, store.metadata.image.channels)
    if found != stored:
        one, other = (f"size={size}, channels={channels}" for size, channels in (found, stored))
        raise DataError(f"the images were opened with {one}, and those in {store.path} are of {other}; open them so")


def _relabelled(source: ImageSource, store: Store, rows: Numbers) -> Numbers:
    found = [_of_other_text(source.labels, store.labels, rows)]
    if store.splits is not None:
        found.append(_of_other_text(source.split_names, store.splits, rows))
    return np.unique(np.concatenate(found))


def _of_other_text(texts: Sequence[str], stored: Sequence[str], rows: Numbers) -> Numbers:
    pairs = enumerate(zip(texts, rows, strict=True))
    return np.fromiter((image for image, (text, row) in pairs if row >= 0 and text != stored[row]), np.int64)


@dataclass(frozen=True, eq=False)
class _Content:
    """Sizes and CRC-32s of images, and those in a store."""

    source: ImageSource
    store: Store
    check: bool
    progress: Progress | None

    def is_same(self, named: Numbers) -> NDArray[np.bool_]:
        """Whether each image has the bytes of its row in `named`; not if that is -1."""
        stored = self._stored_sizes[named]
        same = (named >= 0) & ((stored == self.source.file_bytes) | (not self.source.container.sizes_are_exact))
        images = np.flatnonzero(same)
        same[images] = self._checksums(images) == self._stored_checksums[named[images]]
        return same

    def moved(self, named: Numbers) -> dict[int, int]:
        """Find the images without a row whose bytes one lost row has, and no other image or lost row; with that row."""
        if not self.source.container.sizes_are_exact:
            return {}
        new, lost = np.flatnonzero(named < 0), np.setdiff1d(np.arange(len(self.store)), named)
        sizes, stored = self.source.file_bytes, self._stored_sizes
        new, lost = new[np.isin(sizes[new], stored[lost])], lost[np.isin(stored[lost], sizes[new])]
        content, at = _single(sizes[new], self._checksums(new))
        others, of = _single(stored[lost], self._stored_checksums[lost])
        _, i, j = np.intersect1d(content, others, assume_unique=True, return_indices=True)
        pairs = zip(new[at[i]].tolist(), lost[of[j]].tolist(), strict=True)
        few = _pairs(sizes[new], stored[lost]) <= CHANCE_PAIRS
        return {image: row for image, row in pairs if few or self._have_same_last_name(image, row)}

    def _have_same_last_name(self, image: int, row: int) -> bool:
        return PurePosixPath(self.source.names[image]).name == PurePosixPath(self.store.names[row]).name

    def _checksums(self, images: Numbers) -> NDArray[np.uint32]:
        return content_checksums(self.source, images, check=self.check, progress=self.progress)

    @property
    def _stored_sizes(self) -> Numbers:
        assert self.store.file_bytes is not None  # of version 4
        return self.store.file_bytes

    @property
    def _stored_checksums(self) -> NDArray[np.uint32]:
        assert self.store.checksums is not None
        return self.store.checksums


def _single(sizes: Numbers, checksums: NDArray[np.uint32]) -> tuple[NDArray[np.uint64], Numbers]:
    """Give size and checksum as one number, of those that are there once, and where these are."""
    keys = sizes.astype(np.uint64) << np.uint64(32) | checksums
    values, at, counts = np.unique(keys, return_index=True, return_counts=True)
    return values[counts == 1], at[counts == 1]


def _pairs(sizes: Numbers, others: Numbers) -> int:
    """Count the pairs of one of `sizes` and an equal one of `others`."""
    values, counts = np.unique(sizes, return_counts=True)
    other_values, other_counts = np.unique(others, return_counts=True)
    _, i, j = np.intersect1d(values, other_values, assume_unique=True, return_indices=True)
    return int((counts[i] * other_counts[j]).sum())
