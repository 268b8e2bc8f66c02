"""More images into a finished store, under the same model, mask and codec.

    out.zarr          row groups 0 1 2 |3     the last one is partly filled
                                 | | | |
                             links     copied: its latents, then new images up to a whole row group
                                 | | | |
    out.zarr.partial  row groups 0 1 2  3  4  5      then the two swap names

Objects of a store never change, so the appended store shares them with the one that is read meanwhile; readers see the
old store or the new one, and a kill leaves the old one and, to continue from, the unfinished new one: the appended
store is written as any other, and replaces the old one as with --overwrite.

With `out`, the appended store gets a name of its own, and the old one is only read. That is how it goes in a bucket,
where nothing can be renamed: the server copies the objects of whole row groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from ..data.sources import Images, ImageSource, as_source, is_opened
from ..errors import StoreError, UsageError
from ..model.batch_size import batch_size_of
from ..model.hvae import HVAE
from ..progress import Progress
from ..storage.location import Location, LocationLike, each, location_of
from ..store.folder_writer import check_no_link
from ..store.open_writer import (
    check_location,
    is_written,
    locked,
    published_fingerprint,
    unfinished_fingerprint,
    writer_class,
)
from ..store.quantiser import ClippedError, check_clipped
from ..store.schema import CHECKSUM
from ..store.spec import StoreSpec, spec_fingerprint
from ..store.workers import Worker
from ..store.writer import StoreWriter
from ..verification.verify import checked_row_group
from .append_spec import check_additions, extended_spec, measured_arrays
from .coder import LatentCoder
from .encoded_store import EncodedStore, open_store
from .pipeline import EVALUATED, ImageEncoder, check_images, finish_store, joined, write_row_groups
from .sketch import SKETCH
from .stored_preprocessing import check_preprocessing

TAKEN_AT_ONCE = 256  # row groups that are copied, and then committed; what a killed append copies again


def append(
    model: HVAE,
    images: Images,
    path: LocationLike,
    *,
    out: LocationLike | None = None,
    prefix: str = "",
    batch_size: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    copying: Progress | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> EncodedStore:
    """Add `images` to the store at `path`, which stays readable; returns the appended store.

    With `out`, that is a new store there, and the one at `path` stays as it is; both may be folders or URLs. Without,
    it replaces the old one, which must be in a folder.
    Names of the new images in the store begin with `prefix`, such as "fashion/"; without one, images of arrays, which
    have no names, are numbered on. If the store has rate and distortion of its images, they are
    measured of these too, with noise of `seed`. Killed at any moment, the same call continues. `progress` is called
    with the images done and the images to add, `copying` with those whose row groups are taken over and those to take,
    `on_warning` as by `encode_images`.
    Damaged latents in whole row groups are taken over as they are, damage that is left to `verify` and `repair`.
    Raises `DataError` if these images, or others of their names, are in the store, or do not fit, or were opened with
    other preprocessing (`store.preprocessing`); `StoreError` if there is no store, its last row group or its tables are
    damaged, it is of another model or being written, it has things that a user added and that are lost without `out`,
    or `out` exists; `UsageError` if a store in a bucket is to be replaced, or if `prefix` leads out of a folder.
    """
    store = append_worker(
        model,
        images,
        path,
        Worker(),
        out=out,
        prefix=prefix,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
        copying=copying,
        on_warning=on_warning,
    )
    assert store is not None  # one worker owns all row groups
    return store


def append_worker(
    model: HVAE,
    images: Images,
    path: LocationLike,
    worker: Worker,
    *,
    out: LocationLike | None = None,
    prefix: str = "",
    batch_size: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    copying: Progress | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> EncodedStore | None:
    """Write the row groups that `worker` owns of the store at `out`; see `append` and `encode_worker`.

    `progress` and `copying` count this worker's images. Raises what `append` does, and `UsageError` if there are
    several workers and no `out`.
    """
    location, source = _to_append(path, out, worker), as_source(images)
    check_images(model, source)
    target = location if out is None else location_of(out)
    with locked(target, worker):
        swapped, old = _open(location, in_place=out is None)
        _check_opened_alike(images, source, old)
        if swapped and old.metadata.source.parts_of(len(old))[-1].fingerprint == source.fingerprint:
            return old  # all that was left to do was to remove the shorter store
        if out is None:
            check_additions(old)
        encoder, spec = _plan(model, source, old, batch_size, seed, prefix)
        if worker.count > 1 and is_written(target, spec):
            return open_store(target)
        check_location(target, overwrite=out is None)
        if worker.count == 1:
            _check_unfinished(target, spec)
        writer = writer_class(target).create_or_resume(target, spec, out is None, worker)
        with writer.discarded_on(ClippedError):
            _Addition(old, encoder).write(writer, progress, copying)
        return finish_store(writer, model, on_warning)


def plan_append(
    model: HVAE,
    images: Images,
    path: LocationLike,
    *,
    out: LocationLike | None = None,
    prefix: str = "",
    batch_size: int | None = None,
    seed: int = 0,
) -> tuple[EncodedStore, ImageEncoder, StoreSpec]:
    """Open the store at `path`, and make what encodes `images` and what the appended store is made from.

    Nothing is written. Raises what `append` does before it reads images.
    """
    old, source = look_at(path, out), as_source(images)
    check_images(model, source)
    _check_opened_alike(images, source, old)
    if out is None:
        check_additions(old)
    return old, *_plan(model, source, old, batch_size, seed, prefix)


def look_at(path: LocationLike, out: LocationLike | None = None) -> EncodedStore:
    """The store at `path`, as `open_to_append` gives it, but nothing is changed if a kill came in between."""
    return open_store(_to_append(path, out, Worker()))


def open_to_append(path: LocationLike, out: LocationLike | None = None, worker: Worker | None = None) -> EncodedStore:
    """The store at `path`, also after a kill at the one moment of `append` in which nothing has its name.

    Raises `UsageError` and `StoreError` if `append_worker` would, of these arguments, and what `open_store` does.
    """
    return _open(_to_append(path, out, worker or Worker()), in_place=False)[1]


def _to_append(path: LocationLike, out: LocationLike | None, worker: Worker) -> Location:
    """The location of the store `path`; raises if nothing can be appended to it, or not in this way."""
    location = location_of(path)
    if out is not None:
        target = location_of(out)
        if worker.count == 1 and writer_class(target).is_taken(target):
            raise StoreError(f"{target} exists; give another name")
        if location.contains(target):
            raise UsageError(f"{target} is inside of the store; give a name beside it")
        return location
    if location.folder is None:
        raise UsageError(f"{location} is in a bucket, where no store can be replaced; name the appended one with --out")
    if worker.count > 1:
        raise UsageError("several workers write the appended store under a name of its own; give it as --out")
    check_no_link(location.folder)
    return location


def _open(location: Location, in_place: bool) -> tuple[bool, EncodedStore]:
    """The store at `location`, and whether it had just replaced another one when a kill came."""
    writer = writer_class(location)
    swapped = (in_place or not writer.is_taken(location)) and writer.finish_swap(location)
    return swapped, open_store(location)


def _check_opened_alike(images: Images, source: ImageSource, old: EncodedStore) -> None:
    if is_opened(images):
        check_preprocessing(source, old.metadata, old.path)


def _plan(
    model: HVAE, source: ImageSource, old: EncodedStore, batch_size: int | None, seed: int, prefix: str
) -> tuple[ImageEncoder, StoreSpec]:
    encoder = _encoder(model, source, old, batch_size, seed)
    return encoder, extended_spec(old, source, encoder.per_image, prefix)


def _encoder(model: HVAE, source: ImageSource, old: EncodedStore, batch_size: int | None, seed: int) -> ImageEncoder:
    """What encodes the new images as the old ones were encoded and measured."""
    coder, measured = LatentCoder.of_store(old, model), measured_arrays(old)
    if len(old) % old.row_groups.size:  # the last one gets a digest of its own, which must not vouch for damage
        checked_row_group(old, len(old.row_groups) - 1)
    kept: dict[str, Any] = {"evaluate": measured >= {*EVALUATED}, "seed": seed, "verify": SKETCH in measured}
    kept["checksums"] = old.metadata.has_records
    return ImageEncoder.of(coder, source, old.row_groups.size, batch_size_of(model, batch_size), **kept)


def _check_unfinished(target: Location, spec: StoreSpec) -> None:
    """Raise `StoreError` if an unfinished store is in the way of the one of `spec` at `target`."""
    if unfinished_fingerprint(target) not in (None, spec_fingerprint(spec)):
        left = writer_class(target)(target, spec).unfinished
        raise StoreError(f"{left} is left of another append or encode; finish that with its command, or remove it")


@dataclass(frozen=True)
class _Addition:
    """A store, and what encodes the images that it gets."""

    old: EncodedStore
    encoder: ImageEncoder

    def write(self, writer: StoreWriter, progress: Progress | None, copying: Progress | None) -> None:
        """Write the row groups that the writer's worker owns, and has not written."""
        try:
            pending = writer.own_pending()
            self._take_over(writer, pending, copying)
            new = self._join(writer, pending)
            shifted = progress and (lambda done, total: progress(done + new, total + new))
            write_row_groups(writer, self.encoder, shifted, len(self.old))
        except StoreError:
            self._check_unchanged()  # what looks like damage may be another store
            raise
        self._check_unchanged()

    def _take_over(self, writer: StoreWriter, pending: Sequence[int], copying: Progress | None) -> None:
        """Commit whole row groups of the old store, with its own objects."""
        whole = [row_group for row_group in pending if row_group < self.old.row_groups.whole]
        measured = self._measured(slice(None)) if whole else {}

        def write_per_image(row_group: int) -> None:
            rows = slice(writer.rows(row_group).start, writer.rows(row_group).stop)
            writer.write_per_image(row_group, {name: values[rows] for name, values in measured.items()})

        for first in range(0, len(whole), TAKEN_AT_ONCE):
            some = whole[first : first + TAKEN_AT_ONCE]
            each(writer.unfinished, write_per_image, some)
            writer.take_over(self.old.path, some, self._check_unchanged)
            if copying is not None:
                copying((first + len(some)) * self.old.row_groups.size, len(whole) * self.old.row_groups.size)

    def _join(self, writer: StoreWriter, pending: Sequence[int]) -> int:
        """Write the rest of the old store's last row group with the first new images; how many these are."""
        row_group, count = divmod(len(self.old), self.old.row_groups.size)
        if not count or not writer.worker.owns(row_group):
            return 0
        new = len(writer.rows(row_group)) - count
        if row_group in pending:
            old = checked_row_group(self.old, row_group), self._measured(slice(-count, None))
            added = self.encoder.encode_range(range(new))
            check_clipped(writer.spec.codec, added[0], f"the first {new} new images")
            whole = joined([old, added])
            self._check_unchanged()  # before what was read is committed, which the same call would trust
            writer.write(row_group, *whole)
        return new

    def _measured(self, rows: slice) -> dict[str, NDArray]:
        """What was measured of the old store's images, and their checksums, if it has such arrays."""
        names = (*self.encoder.per_image, *((CHECKSUM,) if self.encoder.checksums else ()))
        return {name: self.old.per_image(name)[rows] for name in names}

    def _check_unchanged(self) -> None:
        """Raise `StoreError` if the old store is another one by now: nothing may be made of both."""
        if published_fingerprint(self.old.path) != self.old.metadata.fingerprint:
            raise StoreError(f"{self.old.path} was removed or replaced while it was read; run append again")
