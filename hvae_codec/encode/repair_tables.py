"""Metadata and tables of a damaged store: the group's metadata from their copy, all else made anew.

Before anything is replaced it is proven: an array's metadata by their checksum, tables by the store's fingerprint.
Metadata take neither images nor a model.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from ..data.sources import ImageSource
from ..errors import HvaeCodecError, StoreError
from ..model.checkpoint import model_hash
from ..model.hvae import HVAE
from ..prune.kl_stats import KLStats
from ..prune.mask import LatentMask
from ..storage.location import Location, replace_file
from ..store.arrays import (
    COPY_HOLDER,
    StoreSpec,
    array_checksum,
    attributes_checksum,
    create_arrays,
    spec_fingerprint,
    write_copy,
)
from ..store.columns import stored_columns
from ..store.metadata_copy import find_copy, group_file
from ..store.reader import read_metadata
from ..store.subject import COPY_FILE, Subject, sound_metadata
from ..store.verify import VerifyReport, spec_of_tables, tables_prove
from .coder import quantiser_steps
from .embedded_model import ARRAY, model_weights


def repair_group(path: Location) -> list[str]:
    """Write the group's `zarr.json` anew where it is damaged, from its own metadata if these are whole, else from their
    second copy; returns the file.

    Raises `StoreError` where there is no store, its metadata are damaged without a copy, or that is another store's.
    """
    metadata, fault = sound_metadata(path)
    if not fault or metadata.get("checksum") != attributes_checksum(metadata):
        return []
    if not _is_of(path, metadata):
        raise StoreError(
            f"{path / 'zarr.json'} is damaged, and the second copy of the metadata in {COPY_FILE} is another store's; "
            "restore one of the two files from a copy of the store"
        )
    replace_file(path, "zarr.json", group_file(path, metadata))
    return ["zarr.json"]


def _is_of(path: Location, metadata: Mapping[str, Any]) -> bool:
    """Whether whole `metadata` are of the store at `path`, whose group's metadata are damaged.

    Its tables say so; where they are damaged too, what is left of the group's metadata must not say otherwise.
    """
    proven = tables_prove(Subject.open(path))
    if proven is not None:
        return proven
    try:
        left = read_metadata(path)[1]
    except StoreError:
        return True
    return bool(left.get("fingerprint") == metadata["fingerprint"])


def repair_arrays(path: Location, subject: Subject) -> list[str]:
    """Make the damaged `zarr.json` of arrays anew; returns the files.

    What they must be follows from the group's metadata and the number of images. The tables must prove it or, where one
    is damaged, two arrays agree on it and at most one say otherwise. Arrays whose checksum is another, or not known,
    are left as they are.
    """
    damaged = [file for damage in subject.metadata_damages if (file := damage.file) != "zarr.json"]
    if not _may_copy(subject):
        damaged = [file for file in damaged if file != COPY_FILE]
    if not damaged or not _is_counted(subject):
        return []
    with tempfile.TemporaryDirectory() as folder:
        _create(Path(folder), subject, _blank_spec(subject))
        contents = {file: (Path(folder) / file).read_bytes() for file in damaged if (Path(folder) / file).is_file()}
    proven = {file: content for file, content in contents.items() if _is_proven(subject, file, content)}
    for file, content in proven.items():
        replace_file(path, file, content)
    return list(proven)


def _is_counted(subject: Subject) -> bool:
    """Whether it is sure how many images the store has."""
    proven = tables_prove(subject)
    if proven is not None:
        return proven
    names = ("name", "label", *(f"z{r}" for r in subject.columns.resolutions))
    found = [subject.arrays[name].shape[0] for name in names if name in subject.arrays]
    agree = found.count(subject.images)
    return agree > 1 and len(found) - agree <= 1


def _may_copy(subject: Subject) -> bool:
    """Whether the second copy may be written: from whole metadata; over another whole copy only if the tables agree."""
    copy = find_copy(subject.path)
    same = copy is None or copy["fingerprint"] == subject.metadata.get("fingerprint")
    return not subject.group_fault and (same or bool(tables_prove(subject)))


def _blank_spec(subject: Subject) -> StoreSpec:
    """A specification that gives arrays of the same metadata, but not their elements."""
    steps = {r: np.ones(subject.columns.count(r), np.float32) for r in subject.columns.resolutions}
    texts = ["-"] * subject.images
    return spec_of_tables(subject, names=texts, labels=texts, columns=subject.columns, steps=steps)


def _is_proven(subject: Subject, file: str, content: bytes) -> bool:
    return array_checksum(json.loads(content)) == subject.checksums.get(file.partition("/")[0])


def _create(folder: Path, subject: Subject, spec: StoreSpec) -> None:
    """The arrays of a store of `spec` in an empty folder, with the second copy of the metadata where it has one."""
    group = zarr.open_group(folder, mode="w", zarr_format=3)
    create_arrays(group, spec)
    if "copy" in subject.metadata:
        write_copy(group, subject.metadata)


def repair_tables(
    path: Location,
    subject: Subject,
    report: VerifyReport,
    images: ImageSource | None = None,
    model: HVAE | None = None,
    stats: KLStats | None = None,
) -> list[str]:
    """Replace what is damaged of the store at `path`, besides latents and digests; returns the files.

    Names and labels are those of `images` where the store's are damaged, columns those of the mask, steps those of the
    codec with `stats`, a model that the store carries is `model`. Raises `StoreError` where the store's fingerprint or
    the model's hash does not prove these, or what they would be made from is not given; nothing is replaced then.
    """
    damaged = {damage.file.split("/")[0] for damage in report.damages if damage.row_group is None}
    wanted = sorted(damaged & {*subject.forms, *subject.per_image, ARRAY})
    if not _may_copy(subject):
        wanted = [name for name in wanted if name != COPY_HOLDER]
    if not wanted:
        return []
    spec = _proven_spec(subject, damaged, images, stats)
    if ARRAY in wanted:
        if model is None:
            raise StoreError(f"{path} carries a model that is damaged; give the run it was made with as --model")
        if model_hash(model) != spec.model["hash"]:
            raise StoreError(f"{path} carries another model than this one; give the run it was made with as --model")
        spec = replace(spec, weights=model_weights(model))
    with tempfile.TemporaryDirectory() as folder:
        _create(Path(folder), subject, spec)
        files = [file for name in wanted for file in _files(Path(folder), name)]
        for file in files:
            replace_file(path, file, (Path(folder) / file).read_bytes())
    return files


def _files(folder: Path, name: str) -> Iterator[str]:
    """All files of a table; of what is written with row groups, the metadata."""
    if name == "committed" or (name[0] == "z" and name[1:].isdecimal()):
        yield f"{name}/zarr.json"
        return
    yield from sorted(file.relative_to(folder).as_posix() for file in (folder / name).rglob("*") if file.is_file())


def _proven_spec(subject: Subject, damaged: set[str], images: ImageSource | None, stats: KLStats | None) -> StoreSpec:
    metadata, shown = subject.metadata, ", ".join(sorted(damaged & {*subject.forms, *subject.per_image, ARRAY}))
    try:
        mask = LatentMask.from_dict(metadata["mask"])
        spec = spec_of_tables(
            subject,
            names=_texts(subject, "name", damaged, images),
            labels=_texts(subject, "label", damaged, images),
            columns=stored_columns(mask),
            steps=_steps(subject, damaged, mask, stats),
        )
    except (LookupError, TypeError, ValueError, HvaeCodecError) as error:
        raise StoreError(f"{shown} cannot be made anew ({error}); restore them from a copy") from None
    if spec_fingerprint(spec) != metadata.get("fingerprint"):
        raise StoreError(
            f"{shown} cannot be made anew: these are not the images, in their order, or not the ranking that the store "
            "was made with; give those, or restore the files from a copy"
        )
    return spec


def _texts(subject: Subject, name: str, damaged: set[str], images: ImageSource | None) -> Sequence[str]:
    if name not in damaged:
        return [str(text) for text in np.asarray(subject.arrays[name][:])]
    if images is None:
        raise StoreError("that takes the images that were encoded, which were not given")
    return images.names if name == "name" else images.labels


def _steps(
    subject: Subject, damaged: set[str], mask: LatentMask, stats: KLStats | None
) -> dict[int, NDArray[np.float32]]:
    resolutions = subject.columns.resolutions
    whole = {r: np.asarray(subject.arrays[f"step{r}"][:]) for r in resolutions if f"step{r}" not in damaged}
    if len(whole) == len(resolutions):
        return whole
    if stats is None:
        raise StoreError("its steps need the ranking that the store was made with")
    return {**quantiser_steps(mask, subject.codec, stats), **whole}
