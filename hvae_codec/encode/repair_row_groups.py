"""Row groups of a finished store, encoded again from their images and put in the place of damaged ones."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from ..data.seen import Seen
from ..data.sources import ImageSource
from ..errors import HvaeCodecError, StoreError, UnreachableError
from ..model.batch_size import batch_size_of
from ..model.hvae import HVAE
from ..storage.location import Location
from ..store.arrays import chunk_length, row_group_digest, shard_key
from ..store.damage import UnreadableError, reading
from ..store.narrowing import CodeRangeError, narrowed
from ..store.reader import Store, Stored
from ..store.schema import CHECKSUM, WRITE_ALL, missing_records
from ..verification.inspection import Inspection
from ..verification.row_group import Latents, read_digest, read_row_group
from .batch_coder import BatchCoder
from .coder import LatentCoder
from .image_encoder import EVALUATED, ImageEncoder, PerImage
from .repair_images import RepairItem
from .sketch import SKETCH, sketch

LIKENESS, EVIDENCE = 0.9, 16
"""An image is taken for the one that was encoded if this share of its telling numbers, and at least so many, are as
stored. Of other photo patches 0.08 are, of patches that overlap up to 0.78; rounding changes few."""
_ROUNDED = "is rounded otherwise than before: on another machine, or in other batches"
_UNPROVEN = "has lost its digest too, which would prove that it is what it was"


@dataclass(frozen=True)
class RepairedRowGroup:
    """What became of it."""

    files: Sequence[str] = ()  # that were replaced, relative to the store
    note: str = ""  # a sentence, if it is not as it was, or could not be repaired
    seen: Seen | None = None  # what reading its images has shown


@dataclass(frozen=True, eq=False)
class RowGroupRepairer:
    """Encodes row groups of a finished store again, and replaces what is damaged of them."""

    inspection: Inspection  # the store, whose metadata and tables are whole
    batch_coder: BatchCoder
    seed: int  # of the noise that rate and distortion are measured with

    @classmethod
    def open(cls, store: Store, model: HVAE, batch_size: int | None, seed: int) -> RowGroupRepairer:
        """Repair `store` by the `model` that made it; raises `StoreError` if that is another one."""
        coder = LatentCoder.of_store(store, model)
        size = chunk_length(store.row_groups.size, batch_size_of(model, batch_size), 1)
        return cls(Inspection(store), BatchCoder(coder, size), seed)

    @property
    def store(self) -> Store:
        """The store as far as it can be read."""
        return self.inspection.store

    def repair(self, item: RepairItem) -> RepairedRowGroup:
        """Make a row group whole, or say why it cannot be."""
        try:
            files, note = self._repair(item.number, self._encoder(item.images), item.are_known)
        except UnreachableError:
            raise
        except HvaeCodecError as error:
            files, note = [], str(error)
        return RepairedRowGroup(files, note, item.images.seen)

    def _encoder(self, images: ImageSource) -> ImageEncoder:
        return ImageEncoder(self.batch_coder, images, seed=self.seed, checksums=self.store.metadata.has_records)

    def _repair(self, row_group: int, encoder: ImageEncoder, known: bool) -> tuple[list[str], str]:
        rows, note = self.store.row_groups.rows(row_group), ""
        known |= self._have_same_bytes(rows, encoder.source)
        encoded, measured = encoder.encode_range(range(len(rows)))
        new = self._narrowed(encoded, rows, encoder.source.names)
        old = {r: read_row_group(self.store, r, row_group) for r in new}
        try:
            committed = read_digest(self.store, row_group)
        except UnreadableError:
            committed = 0
        if _digest(new) != committed:
            self._check_likeness(rows, known, old, new)
            read = {r: latents.numbers for r, latents in old.items()}
            if not any(latents.problem for latents in old.values()) and committed in (0, _digest(read)):
                new = read
            else:
                note = f"row group {row_group} " + (_ROUNDED if committed else _UNPROVEN)
        files = self._replace(row_group, old, new, committed)
        more, unproven = self._repair_per_image(row_group, encoder, new, measured, known or _tells_apart(new))
        return [*files, *more], note or unproven

    def _narrowed(self, encoded: Stored, rows: range, names: Sequence[str]) -> Stored:
        """Stored numbers in the types of their arrays; `CodeRangeError` if a code is none that the store can have."""
        try:
            return narrowed(encoded, self.store.dtypes, rows, names)
        except CodeRangeError as error:
            remedy = "so it is another image than was encoded, or rounded otherwise than on the machine that encoded it"
            raise error.with_remedy(remedy) from None

    def _have_same_bytes(self, rows: range, source: ImageSource) -> bool:
        """Whether the images of `source`, those of `rows`, are proven to be those encoded, by their checksums.

        False if the store has none, or they are lost; raises `StoreError` if an image has other bytes.
        """
        stored = self._read(CHECKSUM, rows) if self.store.metadata.has_records else None
        if stored is None:
            return False
        changed = np.flatnonzero(source.checksums(range(len(rows))) != stored)
        if len(changed):
            first = int(changed[0])
            raise StoreError(
                f"images {rows.start} to {rows.stop - 1} are not encoded again: image {rows[first]} "
                f"({source.names[first]}) of those given has other bytes than the one that was encoded; give the "
                "images that were encoded"
            )
        return True

    def _repair_per_image(
        self, row_group: int, encoder: ImageEncoder, stored: Stored, measured: PerImage, proven: bool
    ) -> tuple[list[str], str]:
        """Measure again what was measured of a row group's images if a file of it is damaged.

        `measured` has what was found while they were encoded. If the images are not `proven` to be those encoded, what
        is of their bytes or pixels is left. Returns the files that were replaced, and a sentence if some were left.
        """
        rows = self.store.row_groups.rows(row_group)
        damaged = [name for name in (*self.store.own_figures, *measured) if self._read(name, rows) is None]
        left = [] if proven else [name for name in damaged if name != SKETCH]
        if SKETCH in damaged:
            measured = {**measured, SKETCH: sketch(encoder.batch_coder.decode_checked(stored))}
        if {*EVALUATED} & ({*damaged} - {*left}):
            measured = measured | replace(encoder, evaluate=True).encode_range(range(len(rows)))[1]
        files = {f"{name}/c/{row_group}": measured[name] for name in damaged if name in measured and name not in left}
        for key, numbers in files.items():
            _replace_file(self.store.path, key, rows.start, numbers)
        return list(files), self._left_sentence(rows, left) if left else ""

    @staticmethod
    def _left_sentence(rows: range, left: Sequence[str]) -> str:
        return (
            f"{', '.join(left)} of images {rows.start} to {rows.stop - 1} cannot be made anew: the images given "
            "are known by their names alone, and their latents are too alike to tell them from others; give the images "
            "that were encoded, all of them and no others"
        )

    def _read(self, name: str, rows: range) -> NDArray | None:
        """What a per-image array that is written with row groups says of `rows`; None if it cannot be read."""
        array: Any = self.store.arrays[name]
        try:
            values = reading(lambda: np.asarray(array[rows.start : rows.stop]))
        except UnreadableError:
            return None
        missing = missing_records(name, values) if name == CHECKSUM else np.isnan(values)
        return None if missing.any() else values

    def _check_likeness(self, rows: range, known: bool, old: dict[int, Latents], new: Stored) -> None:
        """Raise `StoreError` if what can still be read is not of these images, or too little if not `known`."""
        likeness = _likeness(old, new)
        unlike, unknown = np.flatnonzero(likeness < LIKENESS), np.flatnonzero(np.isnan(likeness))
        if len(unlike) or (len(unknown) and not known):
            first = rows[int(unlike[0] if len(unlike) else unknown[0])]
            name = self.inspection.names_of([first])[0]
            what = "is not the image that was encoded" if len(unlike) else "cannot be proven to be the one encoded"
            raise StoreError(
                f"images {rows.start} to {rows.stop - 1} are not encoded again: image {first} ({name}) of those given "
                f"{what}; give the images that were encoded"
            )

    def _replace(self, row_group: int, old: dict[int, Latents], new: Stored, committed: int) -> list[str]:
        """Write the row group's latents and digest if they are not `old` and `committed`; returns the files."""
        columns, first = self.store.columns, self.store.row_groups.rows(row_group).start
        changed = [r for r in new if old[r].problem or not np.array_equal(old[r].numbers, new[r])]
        # What can be read first: no image is then read half old, half new.
        changed.sort(key=lambda r: bool(old[r].problem))
        written = [(f"z{r}/{shard_key(row_group, columns.item(r))}", first, new[r]) for r in changed]
        if (digest := _digest(new)) != committed:
            written.append((f"committed/c/{row_group}", row_group, np.array([digest], np.uint32)))
        for key, start, numbers in written:
            _replace_file(self.store.path, key, start, numbers)
        return [key for key, *_ in written]


def _digest(stored: Stored) -> int:
    return row_group_digest([stored[resolution] for resolution in sorted(stored)])


def _likeness(old: dict[int, Latents], new: Stored) -> NDArray[np.float64]:
    """Share of each image's telling numbers that are as stored, [images]; NaN if fewer than `EVIDENCE` can be read.

    A number tells images apart if it is not the median of its column in the row group, as stored or now.
    """
    equal = counted = np.zeros(len(next(iter(new.values()))))
    for resolution, latents in old.items():
        if latents.lost.all():
            continue
        before, after = (a.reshape(len(a), -1).astype(np.float64) for a in (latents.numbers, new[resolution]))
        usual = np.median(before[~latents.lost], axis=0)
        tolerance = 0.0 if latents.numbers.dtype.kind == "i" else 0.01
        telling = ~latents.lost[:, None] & (_differ(before, usual, tolerance) | _differ(after, usual, tolerance))
        same = telling & ~_differ(before, after, tolerance)
        equal, counted = equal + same.sum(1), counted + telling.sum(1)
    return np.where(counted >= EVIDENCE, equal / np.maximum(counted, 1), np.nan)


def _tells_apart(stored: Stored) -> bool:
    """Whether the numbers of each image tell it from the others of its row group, so that their digest proves it."""
    nothing_lost = np.zeros(len(next(iter(stored.values()))), bool)
    likeness = _likeness({r: Latents(numbers, nothing_lost, "") for r, numbers in stored.items()}, stored)
    return not np.isnan(likeness).any()


def _differ(a: NDArray[np.float64], b: NDArray[np.float64], tolerance: float) -> NDArray[np.bool_]:
    return np.asarray(np.abs(a - b) > tolerance * (1 + np.abs(b)))


def _replace_file(path: Location, key: str, start: int, values: NDArray) -> None:
    """Write `values`, from element `start` of their array on, as zarr would into the file `key` of the store at `path`.

    Elsewhere first: zarr reads a shard before it writes a part of it, and this one may be damaged.
    """
    with tempfile.TemporaryDirectory() as scratch:
        name, _, chunk = key.partition("/")
        (Path(scratch) / "zarr.json").write_bytes((path / name / "zarr.json").read_bytes())
        array: Any = zarr.open_array(scratch, mode="r+").with_config(WRITE_ALL)
        array[start : start + len(values)] = values.astype(array.dtype)
        content = (Path(scratch) / chunk).read_bytes()
    path.write(key, content)
