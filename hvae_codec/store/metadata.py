"""The metadata of a store: the group's `hvae_codec` attribute, typed, in both directions; docs/format.md says each key.

zarr.json  attributes.hvae_codec ── from_attribute ──> StoreMetadata ── to_attribute ──> the same
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from ..data.own_folders import STORE_ATTRIBUTE
from ..errors import HvaeCodecError, StoreError
from ..storage.location import Location
from .compressors import BLOSC, compressor
from .quantiser import CODE_TYPES, Codec, codec_from_dict

ATTRIBUTE = STORE_ATTRIBUTE
FORMAT_VERSION = 5
"""The newest that is read. A store has the lowest one that suffices, see `StoreSpec.format_version`."""
RECORDS_VERSION = 4
"""The first version whose stores keep each image's split, the bytes of its file and their checksum."""
PACKING_VERSION = 5
"""The first version whose stores say how latents are packed, their types, and whether they have records."""
COPY, COPY_HOLDER = "hvae_codec_copy", "committed"
"""The second copy of the attribute is this attribute of this array."""

Embedded = Literal["", "decoder", "whole"]
"""What a store carries of its model: nothing, what decoding takes, or all of it."""
Record = TypeVar("Record")


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """The model that encoded the images."""

    hash: str  # SHA-256 of its configuration and weights
    config: Mapping[str, Any] = field(default_factory=dict)  # its configuration, plain data
    run: str = ""  # the run that it is from, as it was given; empty if it is from none
    embedded: Embedded = ""  # what the store carries of it
    decoder_hash: str = ""  # SHA-256 of the decoder's configuration and weights; empty if the store carries none

    @classmethod
    def from_attribute(cls, attribute: Mapping[str, Any]) -> ModelRecord:
        """The inverse of `to_attribute`; raises `LookupError` or `TypeError` if something is missing or unknown."""
        embedded = {False: "", True: "whole", "decoder": "decoder"}[attribute.get("embedded", False)]
        return _record(cls, {**attribute, "embedded": embedded})

    def to_attribute(self) -> dict[str, Any]:
        """The record as in the file, where `embedded` is true for the whole model, as before there were decoders."""
        known = {"hash": self.hash, "config": self.config, "run": self.run}
        if self.embedded == "decoder":
            return {**known, "embedded": self.embedded, "decoder_hash": self.decoder_hash}
        return {**known, "embedded": True} if self.embedded else known


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """What the images are."""

    size: int  # height and width in pixels
    channels: int
    bits: int

    @property
    def dims(self) -> int:
        """Colour values per image, C × H × W: what bits/dim is divided by."""
        return self.channels * self.size**2


@dataclass(frozen=True, kw_only=True)
class SourcePart:
    """One of the sources that a store was made from by appending."""

    fingerprint: str
    bytes: int
    images: int


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """Where the images were from."""

    fingerprint: str
    bytes: int
    parts: tuple[SourcePart, ...] = ()  # in order, if the store was appended to
    preprocessing: Mapping[str, Any] = field(default_factory=dict)  # what was done to them, but for defaults

    def parts_of(self, images: int) -> tuple[SourcePart, ...]:
        """The parts; of a store of `images` that was never appended to, the one that it is."""
        return self.parts or (SourcePart(fingerprint=self.fingerprint, bytes=self.bytes, images=images),)


@dataclass(frozen=True, kw_only=True)
class StoreMetadata:
    """All that a store says of itself."""

    format_version: int
    package_version: str = "unknown"
    fingerprint: str  # SHA-256 of all that decides the arrays, see `spec`
    row_group_size: int  # images in each row group but the last: `shard` in the file
    chunk_bytes: int | None  # uncompressed, of two images or more, at most; None in stores of older versions
    codec: Codec
    columns: Mapping[str, Any]  # `granularity`, `channels` or `dimensions`: what `Columns.attributes` gives
    image: ImageRecord
    model: ModelRecord
    mask: Mapping[str, Any]  # what the pruning kept, plain data
    source: SourceRecord
    has_copy: bool = False  # whether the array `committed` holds these metadata a second time
    arrays: Mapping[str, int] | None = None  # checksums of the arrays' `zarr.json`; None in older stores
    has_records: bool = False  # whether the store keeps each image's split, the bytes of its file and their checksum
    packing: str = BLOSC  # how chunks of latents are packed, see `compressors`
    dtypes: Mapping[int, str] = field(default_factory=dict)  # of latents, by resolution; empty below version 5
    as_read: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)  # what they were read from

    @classmethod
    def from_attribute(cls, attribute: Any) -> StoreMetadata:
        """Raises `StoreError` if something is missing or of another kind; the checksum is not looked at."""
        try:
            source = attribute["source"]
            preprocessing = {**source.get("preprocessing", {})}
            parts = tuple(_record(SourcePart, part) for part in source.get("parts", ()))
            return cls(
                format_version=int(attribute["format_version"]),
                package_version=str(attribute.get("package_version", "unknown")),
                fingerprint=str(attribute["fingerprint"]),
                row_group_size=_at_least_1(attribute["shard"]),
                chunk_bytes=_at_least_1(attribute["chunk_bytes"]) if "chunk_bytes" in attribute else None,
                codec=codec_from_dict(attribute["codec"]),
                columns={key: attribute[key] for key in _COLUMN_KEYS if key in attribute},
                image=_record(ImageRecord, attribute["image"]),
                model=ModelRecord.from_attribute(attribute["model"]),
                mask={**attribute["mask"]},
                source=_record(SourceRecord, {**source, "parts": parts, "preprocessing": preprocessing}),
                has_copy="copy" in attribute,
                arrays={**attribute["arrays"]} if "arrays" in attribute else None,
                **_packing(attribute),
                as_read=attribute,
            )
        except (HvaeCodecError, LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            reason = str(error) if isinstance(error, HvaeCodecError) else repr(error)
            raise StoreError(f"its metadata are damaged ({reason})") from None

    def to_attribute(self) -> dict[str, Any]:
        """The attribute, keys in the order of the format, with its checksum. No dates: equal contents, equal bytes."""
        if self.as_read is not None:
            return dict(self.as_read)
        attribute = {
            "format_version": self.format_version,
            "package_version": self.package_version,
            "fingerprint": self.fingerprint,
            "shard": self.row_group_size,
            **({} if self.chunk_bytes is None else {"chunk_bytes": self.chunk_bytes}),
            "codec": self.codec.to_dict(),
            **self._packing_attribute(),
            **self.columns,
            "image": vars(self.image),
            "model": self.model.to_attribute(),
            "mask": self.mask,
            "source": {key: value for key, value in asdict(self.source).items() if value not in ((), {})},
            **({"copy": COPY_HOLDER} if self.has_copy else {}),
            **({} if self.arrays is None else {"arrays": dict(self.arrays)}),
        }
        return {**attribute, "checksum": attribute_checksum(attribute)}

    def _packing_attribute(self) -> dict[str, Any]:
        if self.format_version < PACKING_VERSION:
            return {}
        dtypes = {str(resolution): self.dtypes[resolution] for resolution in sorted(self.dtypes)}
        return {"packing": self.packing, "dtypes": dtypes, "records": self.has_records}


def _packing(attribute: Mapping[str, Any]) -> dict[str, Any]:
    """What `_packing_attribute` gives; older versions say it by their number. `StoreError` on an unknown packing."""
    version = int(attribute["format_version"])
    if version < PACKING_VERSION:
        return {"has_records": version >= RECORDS_VERSION}
    compressor(attribute["packing"])
    dtypes = {int(resolution): _code_type(name) for resolution, name in attribute["dtypes"].items()}
    return {"has_records": bool(attribute["records"]), "packing": attribute["packing"], "dtypes": dtypes}


def _code_type(name: Any) -> str:
    if name not in CODE_TYPES:
        raise ValueError(f"{name!r} is not one of {', '.join(CODE_TYPES)}")
    return str(name)


_COLUMN_KEYS = ("granularity", "channels", "dimensions")


def _record(kind: type[Record], data: Mapping[str, Any]) -> Record:
    """A record of what `data` says, and `kind` knows of."""
    return kind(**{part.name: data[part.name] for part in fields(cast(Any, kind)) if part.name in data})


def _at_least_1(value: Any) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} is not a whole number of at least 1")
    return value


def attribute_checksum(attribute: Mapping[str, Any]) -> int:
    """CRC-32 over an `hvae_codec` attribute without its `checksum`.

    >>> attribute_checksum({"shard": 256, "checksum": 0})
    2818069751
    """
    return _json_checksum({key: value for key, value in attribute.items() if key != "checksum"})


def array_checksum(document: Mapping[str, Any]) -> int:
    """CRC-32 over an array's `zarr.json`, but for its shape, which may grow, and attributes, which are its user's."""
    return _json_checksum({key: value for key, value in document.items() if key not in ("shape", "attributes")})


def _json_checksum(document: Mapping[str, Any]) -> int:
    """CRC-32 over JSON with keys sorted, without spaces, in ASCII."""
    return zlib.crc32(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())


def attribute_of(document: bytes) -> Mapping[str, Any] | None:
    """The `hvae_codec` attribute in a group's file; None if there is none."""
    found = _attribute(document, ATTRIBUTE)
    return found if isinstance(found, Mapping) else None


def copied_attribute_of(document: bytes) -> Mapping[str, Any] | None:
    """The second copy in the file of the array that has it; None if there is none."""
    text = _attribute(document, COPY)
    try:
        copy = json.loads(cast(str, text))
    except (ValueError, TypeError):
        return None
    return copy if isinstance(copy, Mapping) else None


def _attribute(document: bytes, name: str) -> Any:
    try:
        return json.loads(document)["attributes"][name]
    except (ValueError, LookupError, TypeError):
        return None


def fingerprint_of(document: bytes) -> str | None:
    """The fingerprint in a group's file, finished or not; None if it is not one of a store."""
    found = (attribute_of(document) or {}).get("fingerprint")
    return found if isinstance(found, str) else None


def fingerprint_in(document: Location | Path) -> str | None:
    """The fingerprint in a store's `zarr.json` or `unfinished.json`; None if it is not there or of somebody else."""
    try:
        return fingerprint_of(document.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
