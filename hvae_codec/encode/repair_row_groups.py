"""Row groups of a finished store, encoded again from their images and put in the place of damaged ones."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from ..data.sources import ImageSource
from ..errors import StoreError
from ..model.hvae import HVAE
from ..storage.location import Location
from ..store.arrays import chunk_length, row_group_digest, shard_key
from ..store.damage import UnreadableError, reading
from ..store.inspection import Inspection
from ..store.reader import Store, Stored
from ..store.schema import WRITE_ALL
from ..store.sketch import SKETCH, sketch
from ..store.verify import Latents, read_digest, read_row_group
from .coder import LatentCoder
from .deep_verify import decode_checked
from .image_encoder import ImageEncoder, PerImage

LIKENESS, EVIDENCE = 0.9, 16
"""An image is taken for the one that was encoded where this share of its telling numbers, and at least so many, are
as stored. Of other photo patches 0.08 are, of patches that overlap up to 0.78; rounding changes few."""
_ROUNDED = "is rounded otherwise than before: on another machine, or in other batches"
_UNPROVEN = "has lost its digest too, which would prove that it is what it was"


@dataclass(frozen=True)
class RepairOptions:
    """What the encode was given, so that the same comes out."""

    batch_size: int = 64
    """Images through the model at once; a row group is cut into these."""
    seed: int = 0
    """Of the noise that rate and distortion are measured with."""


@dataclass(frozen=True, eq=False)
class RowGroupRepairer:
    """Encodes row groups of a finished store again, and replaces what is damaged of them."""

    inspection: Inspection
    """The store, whose metadata and tables are whole."""
    images: ImageSource
    coder: LatentCoder
    options: RepairOptions

    @classmethod
    def open(cls, inspection: Inspection, images: ImageSource, model: HVAE, options: RepairOptions) -> RowGroupRepairer:
        """Raises `StoreError` if `model` is not the store's."""
        return cls(inspection, images, LatentCoder.of_store(inspection.store, model), options)

    @property
    def store(self) -> Store:
        """The store as far as it can be read."""
        return self.inspection.store

    def repair(self, row_group: int) -> tuple[list[str], str]:
        """Make a row group whole.

        Returns the files that were replaced, relative to the store, and a sentence where they are not as they were.
        Raises `StoreError` where images are missing, or are not those that were encoded.
        """
        rows, note = self.store.row_groups.rows(row_group), ""
        source = self.images.subset(self._positions(rows))
        new, _ = self._encode(source)
        old = {r: read_row_group(self.store, r, row_group) for r in new}
        committed = self._committed(row_group)
        if row_group_digest(_ordered(new)) != committed:
            self._check_likeness(rows, old, new)
            if _is_intact(old, committed):
                new = {r: latents.numbers for r, latents in old.items()}
            else:
                note = f"row group {row_group} " + (_ROUNDED if committed else _UNPROVEN)
        files = self._replace(row_group, old, new, committed)
        return [*files, *self._repair_per_image(row_group, source, new)], note

    @property
    def _batch_size(self) -> int:
        """Images through the model at once, as encode has them: row groups are whole batches."""
        return chunk_length(self.store.row_groups.size, self.options.batch_size, 1)

    def _encode(self, source: ImageSource, evaluate: bool = False) -> tuple[Stored, PerImage]:
        encoder = ImageEncoder(self.coder, source, self._batch_size, evaluate, self.options.seed)
        return encoder.encode_range(range(len(source)))

    def _repair_per_image(self, row_group: int, source: ImageSource, stored: Stored) -> list[str]:
        """Measure again what was measured of a row group's images where a file of it is damaged; returns those."""
        rows, key = self.store.row_groups.rows(row_group), f"c/{row_group}"
        damaged = [name for name in self.store.own_figures if not self._is_whole(name, rows)]
        measured: dict[str, NDArray] = {}
        if SKETCH in damaged:
            measured[SKETCH] = sketch(decode_checked(self.coder, stored, self._batch_size))
        if {"rate", "distortion"} & set(damaged):
            measured |= self._encode(source, evaluate=True)[1]
        files = [name for name in damaged if name in measured]
        for name in files:
            _replace_file(self.store.path, f"{name}/{key}", rows.start, measured[name].astype(np.float32))
        return [f"{name}/{key}" for name in files]

    def _is_whole(self, name: str, rows: range) -> bool:
        array: Any = self.store.arrays[name]
        try:
            return not np.isnan(reading(lambda: np.asarray(array[rows.start : rows.stop]))).any()
        except UnreadableError:
            return False

    def _positions(self, rows: range) -> Sequence[int]:
        """Where the images `rows` of the store are among those given: by number where these are known, else by name."""
        if self._are_known(rows):
            return range(rows.start - self._known.start, rows.stop - self._known.start)
        names = self.inspection.names_of(rows)
        if len(names) < len(rows):
            raise StoreError(f"images {rows.start} to {rows.stop - 1} cannot be encoded again: their names are lost")
        missing = [name for name in names if name not in self._places]
        if missing:
            more = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
            raise StoreError(
                f"images {rows.start} to {rows.stop - 1} cannot be encoded again: {missing[0]}{more} are not among the "
                "images given; give the images that were encoded"
            )
        return [self._places[name] for name in names]

    @cached_property
    def _known(self) -> range:
        """Numbers, in the store, of the images given, where these are a source that the store was made from."""
        first = 0
        for part in self.store.metadata.source.parts_of(len(self.store)):
            if part.fingerprint == self.images.fingerprint:
                return range(first, first + part.images)
            first += part.images
        return range(0)

    def _are_known(self, rows: range) -> bool:
        return self._known.start <= rows.start and rows.stop <= self._known.stop

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.images.names)}

    def _committed(self, row_group: int) -> int:
        """The digest that was committed; 0 where it cannot be read."""
        try:
            return read_digest(self.store, row_group)
        except UnreadableError:
            return 0

    def _check_likeness(self, rows: range, old: dict[int, Latents], new: Stored) -> None:
        """Raise `StoreError` where what can still be read is not of these images, or nothing can be to prove it."""
        likeness = _likeness(old, new)
        known = ~np.isnan(likeness)
        unlike = np.flatnonzero(np.where(known, likeness, 1.0) < LIKENESS)
        if len(unlike) or not (known.all() or self._are_known(rows)):
            first = rows[int(unlike[0]) if len(unlike) else int(known.argmin())]
            name = self.inspection.names_of([first])[0]
            what = "is not the image that was encoded" if len(unlike) else "cannot be proven to be the one encoded"
            raise StoreError(
                f"images {rows.start} to {rows.stop - 1} are not encoded again: image {first} ({name}) of those given "
                f"{what}; give the images that were encoded"
            )

    def _replace(self, row_group: int, old: dict[int, Latents], new: Stored, committed: int) -> list[str]:
        columns = self.store.columns
        changed = [r for r in new if old[r].problem or not np.array_equal(old[r].numbers, new[r])]
        # What can be read first: no image is then read half old, half new.
        changed.sort(key=lambda r: bool(old[r].problem))
        values: list[tuple[str, str, Any]] = [(f"z{r}", shard_key(row_group, columns.item(r)), new[r]) for r in changed]
        digest = row_group_digest(_ordered(new))
        if digest != committed:
            values.append(("committed", f"c/{row_group}", np.array([digest], np.uint32)))
        first = {"committed": row_group}
        for name, key, numbers in values:
            start = first.get(name, self.store.row_groups.rows(row_group).start)
            _replace_file(self.store.path, f"{name}/{key}", start, numbers)
        return [f"{name}/{key}" for name, key, _ in values]


def _is_intact(old: dict[int, Latents], committed: int) -> bool:
    """Whether the latents are those of the digest or, where that is lost (0), can all be read."""
    if any(latents.problem for latents in old.values()):
        return False
    return not committed or row_group_digest([old[r].numbers for r in sorted(old)]) == committed


def _ordered(stored: Stored) -> list[NDArray]:
    return [stored[resolution] for resolution in sorted(stored)]


def _likeness(old: dict[int, Latents], new: Stored) -> NDArray[np.float64]:
    """Share of each image's telling numbers that are as stored, [images]; NaN where fewer than `EVIDENCE` can be read.

    A number tells images apart where it is not the median of its place in the row group, as stored or now.
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
        array[start : start + len(values)] = values
        content = (Path(scratch) / chunk).read_bytes()
    path.write(key, content)
