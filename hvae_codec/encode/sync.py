"""A store made anew of images that have changed, which encodes only what is new in them.

    rows of the new store   0 1 2 3 | 4 5 6 7 | 8 9        in the order of the images
    their rows in the old   0 1 2 3 | 4 - 6 7 | - 8        - are encoded
                            links     put together: checked rows of the old store, and new ones

The new store is the one that a fresh encode with the old one's model, mask and steps would write. Numbers may differ
by rounding if batches were of another size, and rate and distortion of images that were moved: their noise depends on
the number that they had.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..data.sources import Images, ImageSource, as_source
from ..errors import DataError, StoreError
from ..lookahead import write_behind
from ..model.hvae import HVAE
from ..progress import Progress
from ..storage.location import LocationLike, location_of
from ..store.metadata import SourceRecord
from ..store.open_writer import check_location, locked, writer_class
from ..store.quantiser import ClippedError, check_clipped
from ..store.reader import Store, Stored
from ..store.rowgroups import runs
from ..store.spec import StoreSpec
from ..store.workers import Worker
from ..store.writer import StoreWriter
from ..writing.commit import write_row_group
from .append_spec import check_additions, spec_to_go_on_with
from .comparison import Comparison, compare, lost_source_sentence
from .encoded_store import EncodedStore
from .image_encoder import ImageEncoder, PerImage, joined
from .old_store import CheckedRows, OldStore, check_unfinished, encoder_of, located, opened, wide_codes_of
from .pipeline import check_images, finish_store, remembered_content
from .unchanged_images import ChangedImageError, check_unchanged


def sync(
    model: HVAE,
    images: Images,
    path: LocationLike,
    *,
    out: LocationLike | None = None,
    check: bool = False,
    batch_size: int | None = None,
    seed: int = 0,
    comparing: Progress | None = None,
    on_compared: Callable[[Comparison], None] | None = None,
    copying: Progress | None = None,
    progress: Progress | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> EncodedStore:
    """Make the store at `path` one of all `images` and of no others; returns it.

    Latents of images that are in the store as they are now are taken over; new and changed ones are encoded (`compare`
    says which, with `check`). The store stays readable, and has the new images all at once; with `out`, the new store
    gets that name, and the old one stays. Killed at any moment, the same call continues. `comparing` is called with the
    images whose bytes were read and those to read, `on_compared` with what differs, `copying` with the images taken
    over, `progress` with those encoded. Raises `DataError` if the images do not fit, or if none of them is in the
    store; otherwise what `append` does.
    """
    location, source = located(path, out, Worker()), as_source(images)
    check_images(model, source)
    target = location if out is None else location_of(out)
    with locked(target, Worker()):
        _, old = opened(location, in_place=out is None)
        found = compare(images, old, check=check, progress=comparing)
        check_related(found, in_place=out is None)
        if on_compared is not None:
            on_compared(found)
        if not found.differs and out is None:
            return old
        if out is None:
            check_additions(old)
        encoder = _filled(encoder_of(old, model, source, batch_size, seed), found.encoded)
        spec = synced_spec(old, source, encoder.per_image)
        check_location(target, overwrite=out is None)
        check_unfinished(target, spec)
        writer = writer_class(target).create_or_resume(target, spec, out is None)
        try:
            check_unchanged(writer, source, check=check, progress=comparing)
        except ChangedImageError:
            writer = writer.anew()
        with wide_codes_of(old.path), writer.discarded_on(ClippedError), remembered_content(source):
            _Rebuild(found, OldStore(old, encoder)).write(writer, copying, progress)
        return finish_store(writer, model, on_warning) or old


def open_to_sync(path: LocationLike, out: LocationLike | None = None) -> EncodedStore:
    """The store at `path`, also after a kill at the one moment of `sync` in which nothing has its name.

    Raises `UsageError` and `StoreError` if `sync` would, of these arguments, and what `open_store` does.
    """
    return opened(located(path, out, Worker()), in_place=False)[1]


def _filled(encoder: ImageEncoder, images: NDArray[np.int64]) -> ImageEncoder:
    """What encodes `images` of the source alone, in whole batches, as a fresh encode does: others round otherwise."""
    missing = -len(images) % encoder.batch_size
    return replace(encoder, source=encoder.source.subset(np.concatenate([images, np.repeat(images[-1:], missing)])))


def check_related(found: Comparison, in_place: bool) -> None:
    """Raise `DataError` if a store has none of the images: another folder, or array, was given by mistake.

    Also if it would lose, `in_place`, all images of one of the sources that were appended to one another.
    """
    foreign = found.encoded if found.source.container.numbered_names else found.new  # any array has such names
    if len(foreign) == len(found.rows):
        path, count = found.store.path, len(found.store)
        raise DataError(
            f"none of the {count:,} images in {path} is in {found.source.container.path}; give the images that it was "
            "made of, or encode these into another store"
        )
    if in_place and (sentence := lost_source_sentence(found)):
        raise DataError(f"{sentence}, or give --out for a new store of these images alone")


def synced_spec(old: Store, source: ImageSource, per_image: tuple[str, ...]) -> StoreSpec:
    """The specification of the store that a fresh encode of `source` would write, with the settings of `old`."""
    spec = spec_to_go_on_with(old, per_image)
    return replace(
        spec,
        names=source.names,
        labels=source.labels,
        splits=None if spec.splits is None else source.split_names,
        file_bytes=None if spec.file_bytes is None else source.file_bytes,
        source=SourceRecord(
            fingerprint=source.fingerprint, bytes=source.source_bytes, preprocessing=source.preprocessing.to_dict()
        ),
    )


@dataclass(frozen=True)
class _Rebuild:
    """Images, the rows of the old store that some of them have, and what encodes the others."""

    found: Comparison
    old: OldStore

    def write(self, writer: StoreWriter, copying: Progress | None, progress: Progress | None) -> None:
        """Write the row groups that are not written yet."""
        try:
            pending, kept_row_groups = writer.own_pending(), self.found.kept_row_groups
            kept = {r: kept_row_groups[r] for r in pending if r in kept_row_groups}
            taken = _Counter(copying, sum(self._counts(r)[0] for r in pending))
            self.old.take_over(writer, kept, taken.reached)
            self._put_together(writer, [r for r in pending if r not in kept], taken, progress)
        except StoreError:
            self.old.check_unchanged()  # what looks like damage may be another store
            raise
        self.old.check_unchanged()

    def _put_together(
        self, writer: StoreWriter, row_groups: list[int], taken: _Counter, progress: Progress | None
    ) -> None:
        encoded = _Counter(progress, len(self.found.encoded))
        encoded.reached(len(self.found.encoded) - sum(self._counts(r)[1] for r in row_groups))

        def write(row_group: tuple[int, Stored, PerImage]) -> int:
            rows = writer.rows(row_group[0])
            names = writer.spec.names[rows.start : rows.stop]
            write_row_group(writer.row_group_writer, *row_group, names, read_back=self.old.encoder.verify)
            return row_group[0]

        whole = self._row_groups(writer, row_groups)
        # Closed at once, also on an error: their threads must not outlive the call.
        with closing(whole), closing(write_behind(write, whole)) as written:
            for row_group in written:
                old, new = self._counts(row_group)
                taken.add(old)
                encoded.add(new)

    def _row_groups(self, writer: StoreWriter, row_groups: list[int]) -> Generator[tuple[int, Stored, PerImage]]:
        """Yield row groups put together. Batches do not depend on where this begins, so nor do the store's bytes."""
        rows_of = CheckedRows(self.old)
        for first, last in runs(row_groups):
            start = int(np.searchsorted(self.found.encoded, writer.rows(first).start))
            with closing(self._encoded_from(start)) as encoded:
                for row_group in range(first, last + 1):
                    numbers = writer.rows(row_group)
                    rows = self.found.rows[numbers.start : numbers.stop]
                    new = [*itertools.islice(encoded, int((rows < 0).sum()))]
                    stored, figures = _merged(rows, rows_of, new)
                    check_clipped(writer.spec.codec, stored, f"images {numbers.start} to {numbers.stop - 1}")
                    self.old.check_unchanged()  # before what was read is committed, which the same call would trust
                    yield row_group, stored, figures

    def _encoded_from(self, start: int) -> Generator[tuple[Stored, PerImage]]:
        """Yield the images that are encoded from number `start` of them on, one by one, from whole batches."""
        encoder = self.old.encoder
        first = start // encoder.batch_size * encoder.batch_size
        with closing(encoder.batches(range(first, len(encoder.source)))) as batches:
            yield from itertools.islice(_one_by_one(batches), start - first, None)

    def _counts(self, row_group: int) -> tuple[int, int]:
        """Count the images of a row group that are taken over, and those that are encoded."""
        numbers = self.found.row_groups.rows(row_group)
        new = int((self.found.rows[numbers.start : numbers.stop] < 0).sum())
        return len(numbers) - new, new


def _one_by_one(batches: Iterator[tuple[Stored, PerImage]]) -> Iterator[tuple[Stored, PerImage]]:
    for stored, figures in batches:
        for i in range(len(next(iter(stored.values())))):
            yield (
                {r: part[i : i + 1] for r, part in stored.items()},
                {k: part[i : i + 1] for k, part in figures.items()},
            )


def _merged(
    rows: NDArray[np.int64], rows_of: CheckedRows, new: list[tuple[Stored, PerImage]]
) -> tuple[Stored, PerImage]:
    """Join the images at `rows` of the old store with `new` ones where that is -1."""
    old = rows >= 0
    parts = [*([rows_of.read(rows[old])] if old.any() else []), *new]
    order = np.argsort(np.concatenate([np.flatnonzero(old), np.flatnonzero(~old)]))
    stored, figures = joined(parts)
    return {r: part[order] for r, part in stored.items()}, {name: part[order] for name, part in figures.items()}


class _Counter:
    """Counts images, and tells a `Progress`."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def add(self, images: int) -> None:
        """Count `images` more."""
        if images:
            self.reached(self._done + images)

    def reached(self, done: int) -> None:
        """Note that `done` images are done by now."""
        self._done = done
        if self._progress is not None and done:
            self._progress(done, self._total)
