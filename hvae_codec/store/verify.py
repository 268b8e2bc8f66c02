"""Whether a store is whole: every file there, every number what was written; names what is not, and whose images.

    verify(PATH) ──> VerifyReport ── damages: file, what is wrong with it, row group, images
                                  └─ notes:   what is no damage, such as files that are left over

Nothing here needs torch but `deep`, which decodes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray

from ..errors import StoreError
from ..storage.location import Location, location_of
from .arrays import CHUNK_BYTES, NO_TEXT, StoreSpec, row_group_digest, shard_key, spec_fingerprint, unstorable
from .columns import Columns
from .damage import Damage, UnreadableError, reading
from .folder_writer import FolderStoreWriter
from .reader import open_store
from .structure import expected_keys, is_expected
from .subject import COPY_FILE, Subject
from .writer import StoreWriter

if TYPE_CHECKING:
    from ..encode.deep_verify import DeepVerifier
    from ..model.hvae import HVAE

Progress = Callable[[int, int], None]

NAMED = 3
"""Images of a damage that are named; the others are counted."""


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found."""

    path: Location
    """The store."""
    images: int
    row_groups: int
    files: int
    """Files that were looked at."""
    damages: Sequence[Damage]
    notes: Sequence[str]
    """What is worth knowing but no damage, one sentence each."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.damages

    @property
    def damaged_row_groups(self) -> list[int]:
        """Row groups to encode again, ascending."""
        return sorted({damage.row_group for damage in self.damages if damage.row_group is not None})


def verify(
    store_path: str | Location, *, deep: bool = False, model: HVAE | None = None, progress: Progress | None = None
) -> VerifyReport:
    """Read everything in the store at `store_path` and hold it against its checksums, digests and metadata.

    With `deep`, every image whose latents are whole is decoded too, by `model` or the one that the store names, and
    held against its sketch where the store has sketches. All damages are reported, not only the first. `progress` is
    called with the images done and the images in all. Raises `StoreError` where there is no store, where it is
    unfinished, of a newer format or of somebody else, or where the group's own metadata are lost, without which
    nothing can be told.
    """
    subject = Subject.open(location_of(store_path))
    damages = [*subject.metadata_damages, *_check_files(subject), *_check_tables(subject)]
    notes = list(_notes(subject))
    if {damage.file for damage in damages} <= {COPY_FILE}:
        more, note = _check_fingerprint(subject)
        damages, notes = [*damages, *more], [*notes, *note]
    decoded, note = _decoded_check(subject, model) if deep else (None, [])
    notes += note
    lost = {damage.file for damage in damages}
    for row_group in range(subject.row_groups):
        damages += _check_row_group(subject, row_group, lost)
        if decoded is not None and row_group not in {damage.row_group for damage in damages}:
            damages += decoded.damages(subject.rows(row_group))
        if progress is not None:
            progress(subject.rows(row_group).stop, subject.images)
    named = [replace(damage, names=subject.names_of(damage.images[:NAMED])) for damage in damages]
    files = 1 + sum(len(files) for files in subject.files.values())
    return VerifyReport(subject.path, subject.images, subject.row_groups, files, named, notes)


def _decoded_check(subject: Subject, model: HVAE | None) -> tuple[DeepVerifier | None, list[str]]:
    """What decodes the images, and a sentence on what that cannot tell."""
    from ..encode.deep_verify import DeepVerifier

    try:
        store = open_store(subject.path)
    except StoreError:
        return None, ["images were not decoded: metadata or tables are damaged"]
    check = DeepVerifier.of(store, model)
    if check.sketches is None:
        return check, ["images were decoded, but not compared: the store has no sketches, see encode --verify"]
    return check, []


def check_written(writer: StoreWriter, row_group: int) -> None:
    """Read back a row group of an unfinished store; `StoreError` where it is not what was committed.

    In a folder, its files are dropped from the system's cache first, where it can be asked to, so that the disk is what
    is read.
    """
    rows, where = writer.rows(row_group), f"row group {row_group} of the unfinished {writer.path}"
    try:
        if isinstance(writer, FolderStoreWriter):
            for resolution in writer.spec.resolutions:
                key = shard_key(row_group, writer.spec.columns.item(resolution))
                _drop_from_cache(writer.partial / f"z{resolution}" / key)
        stored = [reading(_read, writer.array(f"z{resolution}"), rows) for resolution in writer.spec.resolutions]
        committed = int(reading(_element, writer.array("committed"), row_group))
    except (UnreadableError, OSError) as error:
        problem = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)
        raise StoreError(f"{where} {problem}; check the disk") from None
    if row_group_digest(stored) != committed:
        raise StoreError(f"{where} is not read back as it was written; check memory and disk")


def _drop_from_cache(path: Path) -> None:
    if not hasattr(os, "posix_fadvise"):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


# --- files -----------------------------------------------------------------------------------------------------------


def _check_files(subject: Subject) -> Iterator[Damage]:
    """Files that are missing, of arrays whose metadata say which there must be."""
    for name, array in subject.arrays.items():
        if name in subject.misshapen:
            continue
        for key, spans in expected_keys(array):
            if key not in subject.files[name]:
                yield _damage(subject, name, key, spans, "is missing")


def _damage(subject: Subject, name: str, key: str, spans: tuple[slice, ...], problem: str) -> Damage:
    """A damage to the file `key` of the array `name`, and to the images whose elements, `spans`, are in it."""
    if name == "committed":
        return Damage(f"{name}/{key}", problem, subject.rows(spans[0].start), spans[0].start)
    axes = getattr(subject.arrays[name].metadata, "dimension_names", None) or ("",)
    if axes[0] == "image":
        images = range(spans[0].start, spans[0].stop)
        own = _is_latents(name) or name in subject.per_image
        return Damage(f"{name}/{key}", problem, images, images.start // subject.row_group_size if own else None)
    of_all = name.startswith(("step", "dimension"))
    return Damage(f"{name}/{key}", problem, range(subject.images) if of_all else ())


def _is_latents(name: str) -> bool:
    return name[0] == "z" and name[1:].isdecimal()


# --- tables ----------------------------------------------------------------------------------------------------------


def _check_tables(subject: Subject) -> Iterator[Damage]:
    """Everything but latents and digests, file by file."""
    for name, array in subject.arrays.items():
        if name in subject.misshapen or _is_latents(name) or name == "committed":
            continue
        for key, spans in expected_keys(array):
            if key in subject.files[name]:
                problem = _table_problem(name, array, spans)
                if problem:
                    yield _damage(subject, name, key, spans, problem)


def _table_problem(name: str, array: zarr.Array, spans: tuple[slice, ...]) -> str:
    """What is wrong with elements of a table; empty where nothing is."""
    try:
        values = reading(lambda: np.asarray(array[spans]))
    except UnreadableError as error:
        return str(error)
    if values.dtype.kind == "T":
        wrong = values == NO_TEXT
    elif name.startswith("step"):
        wrong = ~(np.isfinite(values) & (values > 0))
    elif name.startswith("dimension"):
        size = int(name.removeprefix("dimension"))
        wrong = (values < 0) | (values >= np.array([2**31 - 1, 2**31 - 1, size, size]))
    else:
        wrong = np.isnan(values) if values.dtype.kind == "f" else np.zeros(1, bool)
    return "holds elements that were never written or cannot be right" if wrong.any() else ""


def _check_fingerprint(subject: Subject) -> tuple[list[Damage], list[str]]:
    """Whether names, labels, steps, columns and metadata are those of the store's fingerprint: none of another store.

    Stores that do not say how large their chunks may be are tried with the usual size, and not condemned.
    """
    try:
        same = _has_its_fingerprint(subject)
    except UnreadableError as error:
        return [Damage("zarr.json", f"has metadata that {error}")], []
    if same:
        return [], []
    if "chunk_bytes" not in subject.metadata:
        return [], ["names, labels and steps could not be held against the fingerprint"]
    return [Damage("zarr.json", "has the fingerprint of other names, labels, steps or settings than the store's")], []


def tables_prove(subject: Subject) -> bool | None:
    """Whether the store's tables have the fingerprint of its metadata; None where one of them is damaged."""
    damaged = {damage.file.partition("/")[0] for damage in (*_check_files(subject), *_check_tables(subject))}
    tables = {name for name in subject.forms if name != "committed" and not _is_latents(name)}
    if tables & (damaged | subject.misshapen):
        return None
    try:
        return _has_its_fingerprint(subject)
    except UnreadableError:
        return None


def _has_its_fingerprint(subject: Subject) -> bool:
    return reading(lambda: spec_fingerprint(read_spec(subject))) == subject.metadata.get("fingerprint")


def read_spec(subject: Subject) -> StoreSpec:
    """What a store was made from, by its own tables, which must be whole."""
    arrays = subject.arrays
    return spec_of_tables(
        subject,
        names=[str(name) for name in np.asarray(arrays["name"][:])],
        labels=[str(label) for label in np.asarray(arrays["label"][:])],
        columns=subject.columns,
        steps={r: np.asarray(arrays[f"step{r}"][:]) for r in subject.columns.resolutions},
    )


def spec_of_tables(
    subject: Subject,
    *,
    names: Sequence[str],
    labels: Sequence[str],
    columns: Columns,
    steps: Mapping[int, NDArray[np.float32]],
) -> StoreSpec:
    """What a store was made from, by its metadata and these tables, its own or others in their place."""
    metadata = subject.metadata
    return StoreSpec(
        names=names,
        labels=labels,
        columns=columns,
        steps=steps,
        codec=subject.codec,
        model=metadata["model"],
        mask=metadata["mask"],
        image=metadata["image"],
        source=metadata["source"],
        row_group_size=subject.row_group_size,
        chunk_bytes=metadata.get("chunk_bytes", CHUNK_BYTES),
        per_image=subject.per_image,
    )


# --- row groups ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Latents:
    """What can be read of a row group in one array."""

    numbers: NDArray
    """Stored numbers, [images, columns, ...]; fill values where they are lost."""
    lost: NDArray[np.bool_]
    """Which images are lost, [images]."""
    problem: str
    """What is wrong, to be read after the file's name; empty where nothing is."""


def _check_row_group(subject: Subject, row_group: int, lost: set[str]) -> Iterator[Damage]:
    """What is wrong with the latents of a row group and their digest, but for files in `lost`, told already."""
    rows, stored, whole = subject.rows(row_group), [], True
    for resolution in subject.columns.resolutions:
        name = f"z{resolution}"
        key = shard_key(row_group, subject.columns.item(resolution))
        if name in subject.misshapen or f"{name}/{key}" in lost:
            whole = False
            continue
        latents = read_latents(subject.arrays[name], rows)
        if latents.problem:
            whole = False
            yield Damage(f"{name}/{key}", latents.problem, [rows[i] for i in np.flatnonzero(latents.lost)], row_group)
        stored.append(latents.numbers)
    file = f"committed/c/{row_group}"
    if "committed" in subject.misshapen or file in lost:
        return
    try:
        committed = int(reading(_element, subject.arrays["committed"], row_group))
    except UnreadableError as error:
        yield Damage(file, str(error), rows, row_group)
        return
    if not committed:
        yield Damage(file, "says that the row group was never written", rows, row_group)
    elif whole and row_group_digest(stored) != committed:
        yield Damage(
            file, "is not the digest of the row group's latents: they are not what was written", rows, row_group
        )


def read_latents(array: zarr.Array, rows: range) -> Latents:
    """The latents of the images `rows`, chunk by chunk where they cannot be read at once."""
    try:
        numbers = reading(_read, array, rows)
    except UnreadableError as error:
        return _read_chunks(array, rows, str(error))
    lost = unstorable(numbers)
    return Latents(numbers, lost, "holds no latents of some images" if lost.any() else "")


def _read_chunks(array: zarr.Array, rows: range, problem: str) -> Latents:
    numbers = np.full((len(rows), *array.shape[1:]), array.fill_value, array.dtype)
    for first in range(0, len(rows), array.chunks[0]):
        chunk = rows[first : first + array.chunks[0]]
        try:
            numbers[first : first + len(chunk)] = reading(_read, array, chunk)
        except UnreadableError:
            continue
    return Latents(numbers, unstorable(numbers), problem)


def _element(array: Any, index: int) -> Any:
    return array[index]


def _read(array: Any, rows: range) -> NDArray:
    return np.asarray(array[rows.start : rows.stop])


# --- what is no damage -----------------------------------------------------------------------------------------------


def _notes(subject: Subject) -> Iterator[str]:
    stray = sorted(_stray(subject))
    if stray:
        shown = ", ".join(stray[:NAMED]) + (", ..." if len(stray) > NAMED else "")
        yield f"{len(stray)} files are no part of the store: {shown}"
    if "checksum" not in subject.metadata:
        yield "the store is of an older version, whose metadata have no checksum"
    for other, meaning in ((".partial", "an unfinished store"), (".replaced", "a store that was being replaced")):
        beside = subject.path.with_name(subject.path.name + other)
        if isinstance(beside, Path) and os.path.lexists(beside):
            yield f"{beside} is beside it, {meaning}"


def _stray(subject: Subject) -> Iterator[str]:
    """Files that no part of the store asks for."""
    for entry in {first + slash for first, slash, _ in (key.partition("/") for key in subject.listing)}:
        if entry.rstrip("/") not in subject.files and entry != "zarr.json":
            yield entry
    for name, files in subject.files.items():
        array = subject.arrays.get(name)
        for file in files - {"zarr.json"}:
            if array is not None and name not in subject.misshapen and not is_expected(array, file):
                yield f"{name}/{file}"
