"""What stands in a store's zarr group: its specification, its arrays and their codecs. docs/format.md says it in full.

A row group is `shard` images, exactly one shard in each latent array, and is written whole by one writer:

    images        0 ... 255 | 256 ... 511 | 512 ...
    z1            shard 0   | shard 1     | shard 2      [image, columns ...]
    z16           shard 0   | shard 1     | shard 2
    committed     digest 0  | digest 1    | digest 2     0 = not written
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import google_crc32c
import numcodecs
import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, TransposeCodec, ZstdCodec

from ..encode.embedded_model import write_weights
from ..errors import StoreError
from .columns import Columns
from .quantiser import MAX_CODE, Codec

# The newest that is read. A store has the lowest one that suffices: 2 where single latent dimensions are kept.
FORMAT_VERSION = 2
ATTRIBUTE = "hvae_codec"
COPY, COPY_HOLDER = "hvae_codec_copy", "committed"
"""A second copy of that attribute is this one of the array's, see `metadata_copy`."""
# Fill value of names and labels, a character that text never holds. (Numpy takes NUL for an empty string.)
NO_TEXT = "\uffff"
_FILL_VALUES: dict[str, Any] = {"f": np.nan, "i": -1, "T": NO_TEXT}
"""By kind of a table's data type: what entries that are lost read as."""
# Without it zarr drops chunks that hold fill values only, and they read back as if they had never been written.
WRITE_ALL: Any = {"write_empty_chunks": True}

# Entries in a chunk of a table, which has one an image.
TABLE_CHUNK = 65536

# Uncompressed size of a chunk, where it holds two images or more: a random image reads in milliseconds.
CHUNK_BYTES = 131072


@dataclass(frozen=True)
class StoreSpec:
    """Everything about a store that is fixed before its first image is encoded."""

    names: Sequence[str]
    """One per image, in the order of the store."""
    labels: Sequence[str]
    """One per image; empty strings where there are none."""
    columns: Columns
    """What is kept of each latent resolution."""
    steps: Mapping[int, np.ndarray]
    """Latent resolution to quantiser steps, float32 [columns]."""
    codec: Codec
    """How z became the stored numbers."""
    model: dict[str, Any]
    """`hash`, `config` and `run` of the model; opaque but for `hash`."""
    mask: dict[str, Any]
    """What the pruning kept; opaque."""
    image: dict[str, int]
    """`size` in pixels, `channels`, `bits`."""
    source: dict[str, Any]
    """`fingerprint` of the images and their `bytes`."""
    row_group_size: int = 256
    """Images in a row group."""
    chunk_bytes: int = CHUNK_BYTES
    """Uncompressed size that a chunk, the smallest readable unit, does not exceed where it holds two images or more."""
    per_image: tuple[str, ...] = ()
    """Names of further arrays, one float32 an image, that are written with each row group."""
    weights: bytes = b""
    """Of a model that the store carries, see `embedded_model`; `model` then says `embedded`."""

    def __post_init__(self) -> None:
        check_spec(self)

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Latent resolutions that something is kept of, ascending."""
        return self.columns.resolutions


def check_spec(spec: StoreSpec) -> None:
    """Raise `StoreError` where `spec` describes no store."""
    if not spec.names:
        raise StoreError("there are no images to store; give at least one")
    if len(spec.labels) != len(spec.names):
        raise StoreError(f"there are {len(spec.names)} names and {len(spec.labels)} labels; give one label an image")
    for text in (*spec.names, *spec.labels):
        if not text.isascii() and text != text.encode(errors="replace").decode():
            raise StoreError(f"the name or label {text!r} is not valid Unicode; rename the file")
    if not spec.resolutions:
        raise StoreError("the mask keeps no latents, so there is nothing to store; keep a larger fraction")
    if spec.row_group_size < 1 or spec.chunk_bytes < 1:
        raise StoreError(
            f"row groups are of {spec.row_group_size} images and chunks of {spec.chunk_bytes} bytes; both must be at "
            "least 1"
        )
    _check_steps(spec)


def _check_steps(spec: StoreSpec) -> None:
    for resolution in spec.resolutions:
        steps = np.asarray(spec.steps.get(resolution, ()))
        if steps.shape != (spec.columns.count(resolution),):
            raise StoreError(
                f"steps at resolution {resolution} have shape {steps.shape}; "
                f"they must be one a column, {spec.columns.count(resolution)}"
            )
        if not (np.isfinite(steps).all() and (steps > 0).all()):
            raise StoreError(f"a step at resolution {resolution} is not a finite number above 0; check the codec")
        if np.dtype(spec.codec.dtype).kind == "f" and (steps != 1).any():
            raise StoreError(f"the steps of {spec.codec.name} latents must be 1; take them from the codec")


def spec_fingerprint(spec: StoreSpec) -> str:
    """SHA-256 of all that decides a store's arrays: equal for two encodes that may continue each other."""
    facts = {
        "format_version": spec.columns.format_version,
        "names": spec.names,
        "labels": spec.labels,
        **spec.columns.attributes(),
        **{name: np.asarray(places, "<i4").tobytes().hex() for name, (places, _) in spec.columns.tables().items()},
        "steps": {str(r): np.asarray(spec.steps[r], "<f4").tobytes().hex() for r in spec.resolutions},
        "codec": spec.codec.to_dict(),
        "model": spec.model.get("hash"),
        "mask": spec.mask,
        "image": spec.image,
        "source": spec.source.get("fingerprint"),
        "shard": spec.row_group_size,
        "chunk_bytes": spec.chunk_bytes,
        **({"per_image": sorted(spec.per_image)} if spec.per_image else {}),
        **({"embedded": True} if spec.model.get("embedded") else {}),
    }
    digest = hashlib.sha256()
    for part in _json_parts(facts):
        digest.update(part.encode())
    return digest.hexdigest()


def _json_parts(facts: Mapping[str, Any]) -> Iterator[str]:
    """JSON of `facts`, keys sorted, in parts of limited size: that of a million names, whole, takes 60 MB.

    >>> "".join(_json_parts({"names": ["a.png", "b.png"], "codec": {"name": "int"}}))
    '{"codec": {"name": "int"}, "names": ["a.png", "b.png"]}'
    """
    opening = "{"
    for key, value in sorted(facts.items()):
        yield f"{opening}{json.dumps(key)}: "
        yield from _list_parts(value) if isinstance(value, list | tuple) else [json.dumps(value, sort_keys=True)]
        opening = ", "
    yield "}"


def _list_parts(values: Sequence[Any]) -> Iterator[str]:
    yield "["
    for first in range(0, len(values), TABLE_CHUNK):
        block = json.dumps(list(values[first : first + TABLE_CHUNK]), sort_keys=True)
        yield (", " if first else "") + block[1:-1]
    yield "]"


def store_attributes(spec: StoreSpec, group: zarr.Group) -> dict[str, Any]:
    """The `hvae_codec` attribute of `group`, whose arrays are there. No dates: equal contents give equal bytes."""
    attributes = {
        "format_version": spec.columns.format_version,
        "package_version": _package_version(),
        "fingerprint": spec_fingerprint(spec),
        "shard": spec.row_group_size,
        "chunk_bytes": spec.chunk_bytes,
        "codec": spec.codec.to_dict(),
        **spec.columns.attributes(),
        "image": spec.image,
        "model": spec.model,
        "mask": spec.mask,
        "source": spec.source,
        "copy": COPY_HOLDER,
        "arrays": {name: array_checksum(array.metadata.to_dict()) for name, array in sorted(group.arrays())},
    }
    return {**attributes, "checksum": attributes_checksum(attributes)}


def attributes_checksum(attributes: Mapping[str, Any]) -> int:
    """CRC-32 over an `hvae_codec` attribute without its `checksum`.

    >>> attributes_checksum({"shard": 256, "checksum": 0})
    2818069751
    """
    return _json_checksum({key: value for key, value in attributes.items() if key != "checksum"})


def array_checksum(metadata: Mapping[str, Any]) -> int:
    """CRC-32 over an array's `zarr.json`, but for its shape, which may grow, and attributes, which are its user's."""
    return _json_checksum({key: value for key, value in metadata.items() if key not in ("shape", "attributes")})


def _json_checksum(document: Mapping[str, Any]) -> int:
    """CRC-32 over JSON with keys sorted, without spaces, in ASCII."""
    return zlib.crc32(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())


def _package_version() -> str:
    try:
        return importlib.metadata.version("hvae-codec")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


# --- arrays ----------------------------------------------------------------------------------------------------------


def fill_group(group: zarr.Group, spec: StoreSpec) -> None:
    """Make the empty `group` a store without latents; the metadata come last, so what has them is complete."""
    create_arrays(group, spec)
    attributes = store_attributes(spec, group)
    write_copy(group, attributes)
    group.update_attributes({ATTRIBUTE: attributes})


def write_copy(group: zarr.Group, attributes: Mapping[str, Any]) -> None:
    """Write the second copy of the `hvae_codec` attribute: as text, which a reader of the array need not parse."""
    text = json.dumps(attributes, separators=(",", ":"))
    zarr.open_array(group.store_path / COPY_HOLDER, mode="r+").update_attributes({COPY: text})


def create_arrays(group: zarr.Group, spec: StoreSpec) -> None:
    """Create all arrays of a store, latents and markers empty, and write names, labels, steps and places."""
    for resolution in spec.resolutions:
        _create_latents(group, spec, resolution)
        steps = np.asarray(spec.steps[resolution], np.float32)
        write_table(group, f"step{resolution}", steps, spec.columns.dimension_names(resolution)[0])
    for name, (places, dimensions) in spec.columns.tables().items():
        write_table(group, name, places, *dimensions)
    write_texts(group, "name", spec.names)
    write_texts(group, "label", spec.labels)
    for name in spec.per_image:
        _create_per_image(group, spec, name)
    if spec.weights:
        write_weights(group, spec.weights)
    row_groups = -(-len(spec.names) // spec.row_group_size)
    group.create_array(
        "committed",
        shape=(row_groups,),
        chunks=(1,),
        dtype="uint32",
        fill_value=0,
        compressors=[Crc32cCodec()],
        dimension_names=("row_group",),
    )


def _create_latents(group: zarr.Group, spec: StoreSpec, resolution: int) -> None:
    item = spec.columns.item(resolution)
    image_bytes = int(np.prod(item)) * np.dtype(spec.codec.dtype).itemsize
    chunk = chunk_length(spec.row_group_size, spec.chunk_bytes, image_bytes)
    group.create_array(
        f"z{resolution}",
        shape=(len(spec.names), *item),
        shards=(spec.row_group_size, *item),
        chunks=(chunk, *item),
        dtype=spec.codec.dtype,
        fill_value=spec.codec.fill_value,
        filters=[TransposeCodec(order=order)] if (order := _memory_order(1 + len(item))) else [],
        compressors=[_compressor(spec.codec.dtype), Crc32cCodec()],
        dimension_names=("image", *spec.columns.dimension_names(resolution)),
        config=WRITE_ALL,
    )


def _create_per_image(group: zarr.Group, spec: StoreSpec, name: str) -> None:
    """An array whose chunks are row groups, so that whoever writes a row group shares no chunk with another."""
    group.create_array(
        name,
        shape=(len(spec.names),),
        chunks=(spec.row_group_size,),
        dtype="float32",
        fill_value=np.nan,
        compressors=[ZstdCodec(level=9), Crc32cCodec()],
        dimension_names=("image",),
        config=WRITE_ALL,
    )


def shard_key(row_group: int, item: tuple[int, ...]) -> str:
    """The shard of a row group, below a latent array whose images have the shape `item`.

    >>> shard_key(2, (5, 8, 8))
    'c/2/0/0/0'
    """
    return "/".join(["c", str(row_group), *("0" for _ in item)])


def chunk_length(row_group_size: int, chunk_bytes: int, image_bytes: int) -> int:
    """Images in a chunk: the largest divisor of `shard` whose images take at most `chunk_bytes`; at least 1.

    >>> [chunk_length(256, 65536, image_bytes) for image_bytes in (10, 256, 1536, 10**6)]
    [256, 256, 32, 1]
    """
    return next(
        n
        for n in range(row_group_size, 0, -1)
        if row_group_size % n == 0 and (n == 1 or n * image_bytes <= chunk_bytes)
    )


def shard_object(numbers: np.ndarray, chunk: int) -> bytes:
    """What zarr writes for a whole shard [images, columns, ...] of chunks of `chunk` images, in a fifth of the time.

    The chunks one after the other, then offset and length of each, then the checksum of these.
    """
    chunks = [_chunk_object(numbers[first : first + chunk]) for first in range(0, len(numbers), chunk)]
    lengths = np.array([len(part) for part in chunks])
    index = np.stack([np.cumsum(lengths) - lengths, lengths], axis=1).astype("<u8").tobytes()
    return b"".join([*chunks, index, _checksum(index)])


def marker_object(digest: int) -> bytes:
    """What zarr writes for an element of `committed`."""
    data = digest.to_bytes(4, "little")
    return data + _checksum(data)


def marked_digest(content: bytes) -> int:
    """The digest in an object of `committed`; 0 where a power cut has torn it: the row group was not committed."""
    digest = int.from_bytes(content[:4], "little")
    return digest if content == marker_object(digest) else 0


def compressed_bytes(chunk: np.ndarray) -> int:
    """Bytes of one latent chunk [images, columns, ...] in a store, without its entry in the shard's index."""
    return len(_chunk_object(chunk))


def _chunk_object(chunk: np.ndarray) -> bytes:
    shuffles = {"shuffle": numcodecs.Blosc.SHUFFLE, "bitshuffle": numcodecs.Blosc.BITSHUFFLE}
    blosc = numcodecs.Blosc("zstd", _LEVEL, shuffles[_shuffle(chunk.dtype.name)])
    ordered = chunk.transpose(_memory_order(chunk.ndim) or range(chunk.ndim))
    data = bytes(blosc.encode(np.ascontiguousarray(ordered, ordered.dtype.newbyteorder("<"))))
    return data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(4, "little")


def _memory_order(axes: int) -> tuple[int, ...]:
    """Order of a chunk's axes before it is compressed; empty where it stays as it is.

    A variate's numbers are alike in all images, so [image, channel, y, x] goes channel by channel. Single latent
    dimensions, [image, dimension], are most like their neighbours in the same image: image by image they take a fifth
    to a third less.
    """
    return (1, 0, 2, 3) if axes == 4 else ()


_LEVEL = 7


def _compressor(dtype: str) -> BloscCodec:
    return BloscCodec(cname="zstd", clevel=_LEVEL, shuffle=_shuffle(dtype), typesize=np.dtype(dtype).itemsize)


def _shuffle(dtype: str) -> Literal["shuffle", "bitshuffle"]:
    # The high bits of a small code all equal its sign: bit shuffling turns them into copies of one plane.
    return "bitshuffle" if np.issubdtype(dtype, np.integer) else "shuffle"


def write_table(group: zarr.Group, name: str, values: np.ndarray, *dimensions: str) -> None:
    """Write a whole array, in place of an earlier one of that name."""
    _create_table(group, name, values.shape, str(values.dtype), dimensions)[:] = values


def write_texts(group: zarr.Group, name: str, texts: Sequence[str]) -> None:
    """Write one text an image, in place of an earlier array of that name; chunk by chunk, so that few are copied."""
    table = _create_table(group, name, (len(texts),), "str", ("image",))
    for first in range(0, len(texts), TABLE_CHUNK):
        chunk = slice(first, first + TABLE_CHUNK)
        table[chunk] = np.array(texts[chunk], dtype=np.dtypes.StringDType())


def _create_table(
    group: zarr.Group, name: str, shape: tuple[int, ...], dtype: str, dimensions: Sequence[str]
) -> zarr.Array:
    return group.create_array(
        name,
        shape=shape,
        chunks=(min(shape[0], TABLE_CHUNK), *shape[1:]),
        dtype=dtype,
        fill_value=_FILL_VALUES["T" if dtype == "str" else np.dtype(dtype).kind],
        compressors=[ZstdCodec(level=9), Crc32cCodec()],
        dimension_names=dimensions,
        overwrite=True,
        config=WRITE_ALL,
    )


# --- numbers in the arrays -------------------------------------------------------------------------------------------


def unstorable(stored: np.ndarray) -> np.ndarray:
    """Whether each image, of [image, columns, ...], holds a number no latent can have: NaN, infinity, a fill value."""
    wrong = np.abs(stored.astype(np.int32)) > MAX_CODE if stored.dtype.kind == "i" else ~np.isfinite(stored)
    return np.asarray(wrong.any(axis=tuple(range(1, wrong.ndim))))


def row_group_digest(stored: Sequence[np.ndarray]) -> int:
    """CRC-32 over the little-endian bytes of a row group's arrays, by ascending resolution; never 0.

    >>> row_group_digest([np.zeros((1, 1, 1, 1), "int16")])
    1104745215
    """
    digest = 0
    for array in stored:
        digest = zlib.crc32(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data, digest)
    return digest or 1
