"""What a store is made from: everything that is fixed before its first image is encoded, and its fingerprint."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import CHUNK_BYTES, ROW_GROUP_SIZE
from ..data.splits import PARTS
from ..errors import StoreError
from ..texts.classes import ClassTexts
from ..texts.sequence import Texts, blocks_of
from .columns import Columns
from .compressors import BLOSC, compressor
from .layout import StoreLayout
from .metadata import PACKING_VERSION, RECORDS_VERSION, ImageRecord, ModelRecord, SourceRecord, StoreMetadata
from .quantiser import CODE_TYPES, Codec
from .rowgroups import RowGroups
from .schema import NO_TEXT, TABLE_CHUNK, ArraySchema


@dataclass(frozen=True, kw_only=True)
class StoreSpec:
    """What a store is made from."""

    names: Sequence[str]  # one per image, in the order of the store
    labels: Sequence[str]  # one per image; empty strings if there are none
    splits: Sequence[str] | None = None  # what each image is for, "" if it is in no split; None: no records
    file_bytes: NDArray[np.int64] | None = None  # bytes of each image in its container; None with `splits`
    columns: Columns  # what is kept of each latent resolution
    steps: Mapping[int, NDArray[np.float32]]  # latent resolution to quantiser steps, float32 [columns]
    codec: Codec  # how z became the stored numbers
    model: ModelRecord
    mask: Mapping[str, Any]  # what the pruning kept; opaque
    image: ImageRecord
    source: SourceRecord
    row_group_size: int = ROW_GROUP_SIZE  # images in each row group but the last
    chunk_bytes: int = CHUNK_BYTES  # uncompressed bytes that a chunk of two images or more does not exceed
    packing: str = BLOSC  # how chunks of latents are packed, see `compressors`; of versions below 5 it is blosc
    dtypes: Mapping[int, str] = field(default_factory=dict)  # of latents, by resolution; the codec's if there is none
    per_image: tuple[str, ...] = ()  # further arrays, one float32 per image, written with each row group
    weights: bytes = b""  # of what the store carries of its model, which `model.embedded` says

    def __post_init__(self) -> None:
        _check(self)

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Latent resolutions that something is kept of, ascending."""
        return self.columns.resolutions

    @property
    def format_version(self) -> int:
        """The lowest version of the format that a reader must know: 3 of a store that carries its decoder alone."""
        if self.packing != BLOSC:
            return PACKING_VERSION
        if self.has_records:
            return RECORDS_VERSION
        return 3 if self.model.embedded == "decoder" else self.columns.format_version

    @property
    def has_records(self) -> bool:
        """Whether each image's split, the bytes of its file and their checksum are kept."""
        return self.splits is not None

    @property
    def array_dtypes(self) -> dict[int, str]:
        """Types of all latent arrays, by resolution."""
        return {resolution: self.dtypes.get(resolution, self.codec.dtype) for resolution in self.resolutions}

    @cached_property
    def layout(self) -> StoreLayout:
        """What its row groups depend on."""
        return StoreLayout(
            columns=self.columns,
            codec=self.codec,
            images=len(self.names),
            row_group_size=self.row_group_size,
            chunk_bytes=self.chunk_bytes,
            per_image=self.per_image,
            weights=len(self.weights),
            has_records=self.has_records,
            packing=self.packing,
            dtypes=self.array_dtypes,
        )

    @property
    def of_row_groups(self) -> tuple[str, ...]:
        """Per-image arrays that are written with each row group."""
        return self.layout.of_row_groups

    @property
    def row_groups(self) -> RowGroups:
        """Which images are in which row group."""
        return self.layout.row_groups

    @property
    def schema(self) -> dict[str, ArraySchema]:
        """The arrays of the store by name."""
        return self.layout.schema

    def metadata(self, arrays: Mapping[str, int]) -> StoreMetadata:
        """What the store says of itself; `arrays` are the checksums of its arrays' metadata."""
        return StoreMetadata(
            **{name: getattr(self, name) for name in _SHARED},
            format_version=self.format_version,
            package_version=_package_version(),
            fingerprint=spec_fingerprint(self),
            columns=self.columns.attributes(),
            has_copy=True,
            has_records=self.has_records,
            dtypes=self.array_dtypes if self.format_version >= PACKING_VERSION else {},
            arrays=dict(sorted(arrays.items())),
        )


_SHARED = ("codec", "model", "mask", "image", "source", "row_group_size", "chunk_bytes", "packing")
"""What stands in a specification and in a store's metadata alike."""


def spec_of(
    metadata: StoreMetadata,
    *,
    names: Sequence[str],
    labels: Sequence[str],
    splits: Sequence[str] | None,
    file_bytes: NDArray[np.int64] | None,
    columns: Columns,
    steps: Mapping[int, NDArray[np.float32]],
    per_image: tuple[str, ...],
) -> StoreSpec:
    """What a store of `metadata` was made from, given these tables, its own or others in their place."""
    shared = {name: getattr(metadata, name) for name in _SHARED}
    shared["chunk_bytes"] = metadata.chunk_bytes or CHUNK_BYTES
    images: Any = {"names": names, "labels": labels, "splits": splits, "file_bytes": file_bytes}
    return StoreSpec(**shared, **images, columns=columns, steps=steps, dtypes=metadata.dtypes, per_image=per_image)


def _package_version() -> str:
    try:
        return importlib.metadata.version("hvae-codec")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _check(spec: StoreSpec) -> None:
    """Raise `StoreError` if `spec` describes no store."""
    if not spec.names:
        raise StoreError("there are no images to store; give at least one")
    if len(spec.labels) != len(spec.names):
        raise StoreError(f"there are {len(spec.names)} names and {len(spec.labels)} labels; give one label per image")
    _check_records(spec)
    _check_texts(spec.names)
    _check_texts(spec.labels)
    if not spec.resolutions:
        raise StoreError("the mask keeps no latents, so there is nothing to store; keep a larger fraction")
    if spec.row_group_size < 1 or spec.chunk_bytes < 1:
        raise StoreError(
            f"row groups are of {spec.row_group_size} images and chunks of {spec.chunk_bytes} bytes; both must be at "
            "least 1"
        )
    _check_packing(spec)
    for resolution in spec.resolutions:
        _check_steps(spec, resolution)


def _check_packing(spec: StoreSpec) -> None:
    compressor(spec.packing).check()
    allowed = CODE_TYPES if spec.packing != BLOSC and spec.codec.dtype in CODE_TYPES else (spec.codec.dtype,)
    for resolution, dtype in spec.array_dtypes.items():
        if dtype not in allowed:
            raise StoreError(
                f"z{resolution} is of type {dtype}; {spec.codec.name} latents in the packing {spec.packing} are "
                f"{' or '.join(allowed)}"
            )
    if compressor(spec.packing).integers_only and spec.codec.dtype not in CODE_TYPES:
        raise StoreError(f"{spec.codec.name} latents cannot have the packing {spec.packing}; give {BLOSC}")


def _check_records(spec: StoreSpec) -> None:
    if spec.splits is None and spec.file_bytes is None:
        return
    sizes = np.asarray(() if spec.file_bytes is None else spec.file_bytes)
    if len(spec.splits or ()) != len(spec.names) or sizes.shape != (len(spec.names),):
        raise StoreError(
            f"there are {len(spec.names)} names, {len(spec.splits or ())} splits and the bytes of {len(sizes)} files; "
            "give one of each per image, or neither splits nor bytes"
        )
    unknown = {*ClassTexts.of(spec.splits or ()).classes} - {*PARTS, ""}
    if unknown:
        raise StoreError(f"an image is of the split {min(unknown)!r}; give one of {', '.join(PARTS)}, or an empty text")
    if sizes.dtype != np.int64 or (sizes < 0).any():
        raise StoreError(f"bytes of files are {sizes.dtype}, {sizes.min()} at least; they must be int64, 0 or more")


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, Texts) and texts.isascii():
        return
    for text in (text for block in blocks_of(texts) if not "".join(block).isascii() for text in block):
        if text != text.encode(errors="replace").decode():
            raise StoreError(f"the name or label {text!r} is not valid Unicode; rename the file")
        if text == NO_TEXT:
            raise StoreError(f"the name or label {text!r} marks what was never written in a store; rename the file")


def _check_steps(spec: StoreSpec, resolution: int) -> None:
    steps = np.asarray(spec.steps.get(resolution, ()))
    if steps.shape != (spec.columns.count(resolution),):
        raise StoreError(
            f"steps at resolution {resolution} have shape {steps.shape}; "
            f"they must be one per column, {spec.columns.count(resolution)}"
        )
    if not (np.isfinite(steps).all() and (steps > 0).all()):
        raise StoreError(f"a step at resolution {resolution} is not a finite number above 0; check the codec")
    if np.dtype(spec.codec.dtype).kind == "f" and (steps != 1).any():
        raise StoreError(f"the steps of {spec.codec.name} latents must be 1; take them from the codec")


def spec_fingerprint(spec: StoreSpec) -> str:
    """SHA-256 of all that decides a store's arrays: equal for two encodes that may continue each other."""
    facts = {
        "format_version": spec.format_version,
        "names": spec.names,
        "labels": spec.labels,
        **spec.columns.attributes(),
        **{name: np.asarray(table, "<i4").tobytes().hex() for name, table in spec.columns.tables().items()},
        "steps": {str(r): np.asarray(spec.steps[r], "<f4").tobytes().hex() for r in spec.resolutions},
        "codec": spec.codec.to_dict(),
        "model": spec.model.hash,
        "mask": spec.mask,
        "image": vars(spec.image),
        "source": spec.source.fingerprint,
        "shard": spec.row_group_size,
        "chunk_bytes": spec.chunk_bytes,
        **({"preprocessing": dict(spec.source.preprocessing)} if spec.source.preprocessing else {}),
        **({"per_image": sorted(spec.per_image)} if spec.per_image else {}),
        **({} if spec.packing == BLOSC else _packing_facts(spec)),
        **({} if spec.splits is None else {"splits": spec.splits, "file_bytes": spec.file_bytes}),
        **({"embedded": True} if spec.model.embedded == "whole" else {}),
        **({"decoder": spec.model.decoder_hash} if spec.model.embedded == "decoder" else {}),
    }
    digest = hashlib.sha256()
    for part in _json_parts(facts):
        digest.update(part.encode())
    return digest.hexdigest()


def _packing_facts(spec: StoreSpec) -> dict[str, Any]:
    return {"packing": spec.packing, "dtypes": {str(r): dtype for r, dtype in spec.array_dtypes.items()}}


def _json_parts(facts: Mapping[str, Any]) -> Iterator[str]:
    """JSON of `facts`, keys sorted, in parts of limited size: that of a million names, whole, takes 60 MB.

    >>> "".join(_json_parts({"names": ["a.png", "b.png"], "codec": {"name": "int"}}))
    '{"codec": {"name": "int"}, "names": ["a.png", "b.png"]}'
    """
    opening = "{"
    for key, value in sorted(facts.items()):
        yield f"{opening}{json.dumps(key)}: "
        yield from (
            _list_parts(value)
            if isinstance(value, list | tuple | Texts | np.ndarray)
            else [json.dumps(value, sort_keys=True)]
        )
        opening = ", "
    yield "}"


def _list_parts(values: Sequence[Any] | NDArray) -> Iterator[str]:
    yield "["
    for first in range(0, len(values), TABLE_CHUNK):
        part = values[first : first + TABLE_CHUNK]
        block = json.dumps(part.tolist() if isinstance(part, np.ndarray) else [*part], sort_keys=True)
        yield (", " if first else "") + block[1:-1]
    yield "]"
