"""The store that append and sync make another one of: where the new one goes, and what it takes over.

Objects of a store never change, so the new store shares them with the one that is read meanwhile; readers see the old
store or the new one. A kill leaves the old one and, to continue from, the unfinished new one: it is written as any
other, and replaces the old one as with --overwrite. Or it gets a name of its own: that is how it goes in a bucket,
where nothing can be renamed, and the server copies the objects of whole row groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.sources import ImageSource
from ..errors import StoreError, UsageError
from ..model.batch_size import batch_size_of
from ..model.hvae import HVAE
from ..storage.location import Location, LocationLike, each, location_of
from ..store.folder_writer import check_no_link
from ..store.narrowing import CodeRangeError
from ..store.open_writer import unfinished_fingerprint, writer_class
from ..store.reader import Stored
from ..store.schema import CHECKSUM
from ..store.spec import StoreSpec, spec_fingerprint
from ..store.workers import Worker
from ..store.writer import StoreWriter
from ..verification.row_group import checked_row_group
from ..writing.checked_store import check_not_replaced
from .append_spec import measured_arrays
from .coder import LatentCoder
from .encoded_store import EncodedStore, open_store
from .image_encoder import EVALUATED, ImageEncoder, PerImage
from .sketch import SKETCH

TAKEN_AT_ONCE = 256  # row groups that are copied, and then committed; what a killed command copies again


def located(path: LocationLike, out: LocationLike | None, worker: Worker) -> Location:
    """The location of the store `path`; raises if no other store can be made of it at `out`, or in its place."""
    location = location_of(path)
    if out is not None:
        target = location_of(out)
        if worker.count == 1 and writer_class(target).is_taken(target):
            raise StoreError(f"{target} exists; give another name")
        if location.contains(target):
            raise UsageError(f"{target} is inside of the store; give a name beside it")
        return location
    if location.folder is None:
        raise UsageError(f"{location} is in a bucket, where no store can be replaced; name the new one with --out")
    if worker.count > 1:
        raise UsageError("several workers write the appended store under a name of its own; give it as --out")
    check_no_link(location.folder)
    return location


def opened(location: Location, in_place: bool) -> tuple[bool, EncodedStore]:
    """The store at `location`, and whether it had just replaced another one when a kill came."""
    writer = writer_class(location)
    swapped = (in_place or not writer.is_taken(location)) and writer.finish_swap(location)
    return swapped, open_store(location)


def encoder_of(old: EncodedStore, model: HVAE, source: ImageSource, batch_size: int | None, seed: int) -> ImageEncoder:
    """What encodes images as those of `old` were encoded and measured."""
    coder, measured = LatentCoder.of_store(old, model), measured_arrays(old)
    kept: dict[str, Any] = {"evaluate": measured >= {*EVALUATED}, "seed": seed, "verify": SKETCH in measured}
    kept["checksums"] = old.metadata.has_records
    return ImageEncoder.of(coder, source, old.row_groups.size, batch_size_of(model, batch_size), **kept)


def check_unfinished(target: Location, spec: StoreSpec) -> None:
    """Raise `StoreError` if an unfinished store is in the way of the one of `spec` at `target`."""
    if unfinished_fingerprint(target) not in (None, spec_fingerprint(spec)):
        left = writer_class(target)(target, spec).unfinished
        raise StoreError(f"{left} is left of another command; finish that with the same command again, or remove it")


@contextmanager
def wide_codes_of(path: Location) -> Iterator[None]:
    """Say what to do if a code of a new image is too large for its array in the store at `path`."""
    try:
        yield
    except CodeRangeError as error:
        raise error.for_store(path) from None


@dataclass(frozen=True)
class OldStore:
    """A store whose row groups, and figures of images, another one takes over."""

    store: EncodedStore
    encoder: ImageEncoder  # of the images that are added; says which figures there are

    @cached_property
    def figures(self) -> PerImage:
        """What was measured of the images, and their checksums, if the store has such arrays: [images] each."""
        names = (*self.encoder.per_image, *((CHECKSUM,) if self.encoder.checksums else ()))
        return {name: self.store.per_image(name) for name in names}

    def take_over(
        self, writer: StoreWriter, row_groups: Mapping[int, int], on_taken: Callable[[int], None] | None
    ) -> None:
        """Commit row groups of the new store, by their number there and here, with this one's objects.

        `on_taken` is called with the images that were taken over so far.
        """
        pairs, taken = [*row_groups.items()], 0

        def write_per_image(pair: tuple[int, int]) -> None:
            rows = self.store.row_groups.rows(pair[1])
            writer.write_per_image(pair[0], {k: v[rows.start : rows.stop] for k, v in self.figures.items()})

        for first in range(0, len(pairs), TAKEN_AT_ONCE):
            some = dict(pairs[first : first + TAKEN_AT_ONCE])
            each(writer.unfinished, write_per_image, some.items())
            writer.take_over(self.store.path, some, self.check_unchanged)
            taken += sum(len(writer.rows(row_group)) for row_group in some)
            if on_taken is not None:
                on_taken(taken)

    def check_unchanged(self) -> None:
        """Raise `StoreError` if this store is another one by now: nothing may be made of both."""
        check_not_replaced(self.store)


class CheckedRows:
    """Rows of a store whose row groups, when they are read first, are compared with their digests."""

    def __init__(self, old: OldStore) -> None:
        self._old, self._checked = old, np.zeros(len(old.store.row_groups), bool)

    def read(self, rows: NDArray[np.int64]) -> tuple[Stored, PerImage]:
        """Stored numbers and figures of the images at `rows`; `StoreError` if they are not those that were committed.

        A digest vouches for a whole row group, which is read for it once; its chunks have checksums of their own.
        """
        store = self._old.store
        for row_group in np.unique(rows // store.row_groups.size):
            if not self._checked[row_group]:
                checked_row_group(store, int(row_group))
                self._checked[row_group] = True
        return store.gather(rows.tolist()), {name: values[rows] for name, values in self._old.figures.items()}
