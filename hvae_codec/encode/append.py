"""More images into a finished store, under the same model, mask and codec.

    out.zarr          row groups 0 1 2 |3     the last one is partly filled
                                 | | | |
                             links     copied: its latents, then new images up to a whole row group
                                 | | | |
    out.zarr.partial  row groups 0 1 2  3  4  5      then the two swap names

See `old_store`. With `out`, the appended store gets a name of its own, and the old one is only read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..data.sources import Images, ImageSource, as_source, is_opened
from ..engine.engine import Engine, Here
from ..engine.given import Executors, given_engine
from ..engine.tally import Tally
from ..errors import StoreError
from ..model.batch_size import batch_size_of
from ..model.checkpoint import model_hash
from ..model.hvae import HVAE
from ..model.reference import ModelReference, ModelSource
from ..progress import Progress
from ..storage.location import LocationLike, location_of
from ..store.open_writer import check_location, create_or_resume, is_written, locked
from ..store.quantiser import ClippedError, check_clipped
from ..store.spec import StoreSpec
from ..store.workers import Worker
from ..store.writer import StoreWriter
from ..verification.row_group import checked_row_group
from ..writing.commit import write_row_group
from .append_spec import check_additions, extended_spec
from .driver import Workers
from .encoded_store import EncodedStore, open_store
from .image_encoder import ImageEncoder, joined
from .missing import MissingRowGroups
from .old_store import OldStore, check_unfinished, encoder_of, located, opened, wide_codes_of
from .pipeline import check_images, finish_store, remembered_content, write_missing
from .store_model import StoreModel
from .stored_preprocessing import check_preprocessing
from .unchanged_images import check_unchanged, check_unchanged_since


def append(
    model: HVAE,
    images: Images,
    path: LocationLike,
    *,
    out: LocationLike | None = None,
    prefix: str = "",
    batch_size: int | None = None,
    seed: int = 0,
    check: bool = False,
    comparing: Progress | None = None,
    device: str | None = None,
    engine: Engine | None = None,
    executor: Executors | None = None,
    tally: Tally | None = None,
    progress: Progress | None = None,
    copying: Progress | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> EncodedStore:
    """Add `images` to the store at `path`, which stays readable; returns the appended store.

    With `out`, that is a new store there, and the one at `path` stays as it is; both may be folders or URLs. Without,
    it replaces the old one, which must be in a folder.
    Names of the new images in the store begin with `prefix`, such as "fashion/"; without one, images of arrays, which
    have no names, are numbered on. If the store has rate and distortion of its images, they are measured of these too,
    with noise of `seed`. Killed at any moment, the same call continues, if the images that were encoded are as they
    were: `comparing` is called with those whose bytes were read, and those to read (see `content_checksums`, also for
    `check`). `progress` is called with the images done and the images to add, `copying` with those whose row groups are
    taken over and those to take, `on_warning` as by `encode_images`. Row groups are encoded on `engine` or `executor`,
    as there, each on `device`.
    Damaged latents in whole row groups are taken over as they are, damage that is left to `verify` and `repair`.
    Raises `DataError` if these images, or others of their names, are in the store, or do not fit, or were opened with
    other preprocessing (`store.preprocessing`); `StoreError` if there is no store, its last row group or its tables are
    damaged, it is of another model or being written, it has things that a user added and that are lost without `out`,
    or `out` exists; `UsageError` if a store in a bucket is to be replaced, or if `prefix` leads out of a folder.
    """
    what: Any = {"out": out, "prefix": prefix, "batch_size": batch_size, "seed": seed, "check": check}
    where: Any = {"device": device, "engine": engine, "executor": executor, "tally": tally}
    told: Any = {"comparing": comparing, "progress": progress, "copying": copying, "on_warning": on_warning}
    store = append_worker(model, images, path, Worker(), **what, **where, **told)
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
    check: bool = False,
    comparing: Progress | None = None,
    device: str | None = None,
    engine: Engine | None = None,
    executor: Executors | None = None,
    tally: Tally | None = None,
    progress: Progress | None = None,
    copying: Progress | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> EncodedStore | None:
    """Write the row groups that `worker` owns of the store at `out`; see `append` and `encode_worker`.

    `progress`, `copying` and `comparing` count this worker's images. Raises what `append` does, and `UsageError` if
    there are several workers and no `out`.
    """
    location, source = located(path, out, worker), as_source(images)
    check_images(model, source)
    target = location if out is None else location_of(out)
    with given_engine(engine, executor) as used, locked(target, worker):
        swapped, old = opened(location, in_place=out is None)
        _check_opened_alike(images, source, old)
        if swapped and old.metadata.source.parts_of(len(old))[-1].fingerprint == source.fingerprint:
            return old  # all that was left to do was to remove the shorter store
        if out is None:
            check_additions(old)
        if not isinstance(used, Here):
            batch_size = batch_size_of(model, batch_size, device)
        encoder, spec = _plan(model, source, old, batch_size, seed, prefix, check)
        if worker.count > 1 and is_written(target, spec):
            return _written_before(open_store(target), source, worker, len(old), check, comparing)
        check_location(target, overwrite=out is None)
        if worker.count == 1:
            check_unfinished(target, spec)
        # Shards are taken over as they are, so their arrays must have the same types.
        writer, is_begun = create_or_resume(target, spec, out is None, worker, same_types=True)
        check_unchanged(writer, source, start=len(old), check=check, progress=comparing)
        workers = Workers(used, device or model.device.type, tally or Tally())
        with wide_codes_of(old.path), writer.discarded_on(ClippedError), remembered_content(source):
            _Addition(OldStore(old, encoder), workers, is_begun).write(writer, progress, copying)
        return finish_store(writer, model, on_warning)


def _written_before(
    appended: EncodedStore, source: ImageSource, worker: Worker, start: int, check: bool, comparing: Progress | None
) -> EncodedStore:
    """Check that the images of a `worker` are still those that it, or others, have added from image `start` on."""
    check_unchanged_since(appended, source, worker, start, check=check, progress=comparing)
    return appended


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
    return open_store(located(path, out, Worker()))


def open_to_append(path: LocationLike, out: LocationLike | None = None, worker: Worker | None = None) -> EncodedStore:
    """The store at `path`, also after a kill at the one moment of `append` in which nothing has its name.

    Raises `UsageError` and `StoreError` if `append_worker` would, of these arguments, and what `open_store` does.
    """
    return opened(located(path, out, worker or Worker()), in_place=False)[1]


def _check_opened_alike(images: Images, source: ImageSource, old: EncodedStore) -> None:
    if is_opened(images):
        check_preprocessing(source, old.metadata, old.path)


def _plan(
    model: HVAE,
    source: ImageSource,
    old: EncodedStore,
    batch_size: int | None,
    seed: int,
    prefix: str,
    check: bool = False,
) -> tuple[ImageEncoder, StoreSpec]:
    """What encodes the new images as the old ones were encoded, and what the appended store is made from."""
    encoder = encoder_of(old, model, source, batch_size, seed)
    if len(old) % old.row_groups.size:  # the last one gets a digest of its own, which must not vouch for damage
        checked_row_group(old, len(old.row_groups) - 1)
    return encoder, extended_spec(old, source, encoder.per_image, prefix, check=check)


@dataclass(frozen=True)
class _Addition:
    """A store, and what encodes the images that it gets."""

    old: OldStore
    workers: Workers
    is_begun: bool  # whether somebody may be writing the appended store yet

    def write(self, writer: StoreWriter, progress: Progress | None, copying: Progress | None) -> None:
        """Write the row groups that the writer's worker owns, and has not written."""
        try:
            pending = writer.own_pending()
            self._take_over(writer, pending, copying)
            new = self._join(writer, pending)
            shifted = progress and (lambda done, total: progress(done + new, total + new))
            missing = MissingRowGroups(writer, self.old.encoder, start=len(self.old.store))
            write_missing(missing, self.workers, self._model, shifted, read_back_all=self.is_begun)
        except StoreError:
            self.old.check_unchanged()  # what looks like damage may be another store
            raise
        self.old.check_unchanged()

    def _model(self) -> ModelSource:
        """Where workers find the model, which may be the one that the store carries."""
        model, old = self.old.encoder.coder.model, self.old.store
        if model.run is None and old.metadata.model.embedded == "whole":
            return StoreModel(old.path.absolute(), model_hash(model))
        return ModelReference.of(model)

    def _take_over(self, writer: StoreWriter, pending: Sequence[int], copying: Progress | None) -> None:
        """Commit whole row groups of the old store, with its own objects."""
        row_groups = self.old.store.row_groups
        whole = {row_group: row_group for row_group in pending if row_group < row_groups.whole}
        total = len(whole) * row_groups.size
        self.old.take_over(writer, whole, copying and (lambda done: copying(done, total)))

    def _join(self, writer: StoreWriter, pending: Sequence[int]) -> int:
        """Write the rest of the old store's last row group with the first new images; how many these are."""
        store = self.old.store
        row_group, count = divmod(len(store), store.row_groups.size)
        if not count or not writer.worker.owns(row_group):
            return 0
        new = len(writer.rows(row_group)) - count
        if row_group in pending:
            figures = {name: values[-count:] for name, values in self.old.figures.items()}
            old, added = (checked_row_group(store, row_group), figures), self.old.encoder.encode_range(range(new))
            check_clipped(writer.spec.codec, added[0], f"the first {new} new images")
            whole = joined([old, added])
            self.old.check_unchanged()  # before what was read is committed, which the same call would trust
            names = writer.spec.names[writer.rows(row_group).start : writer.rows(row_group).stop]
            write_row_group(writer.row_group_writer, row_group, *whole, names)
        return new
