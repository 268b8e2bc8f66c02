"""Stores that tests build: latents of a photograph in a small store, its files, and the metadata of older versions."""

import dataclasses
import json
import zlib

import numpy as np
from skimage import data

from hvae_codec import open_store
from hvae_codec.store.columns import PositionColumns, VariateColumns
from hvae_codec.store.folder_writer import FolderStoreWriter
from hvae_codec.store.metadata import ImageRecord, ModelRecord, SourceRecord, attribute_checksum
from hvae_codec.store.quantiser import FloatCodec, IntCodec
from hvae_codec.store.spec import StoreSpec

CHANNELS = {16: ((4, 1), (5, 0)), 8: (), 4: ((2, 0), (2, 3), (3, 1)), 1: ((0, 0), (0, 2))}
STEPS = {16: np.array([0.5, 0.3], np.float32), 4: np.array([0.1, 0.2, 1.5], np.float32), 1: np.ones(2, np.float32)}
GRANULARITIES = ["variate", "position"]
KINDS = [("variate", IntCodec()), ("position", IntCodec()), ("variate", FloatCodec("float16"))]
"""Granularities and codecs that tests of damage go through."""

PACKED = {
    packing: {"packing": packing, "dtypes": {1: "int8", 4: "int16", 16: "int8"}} for packing in ("zstd", "archive")
}
"""What a specification of format version 5 says more, of either packing."""


def kept_positions(r):
    """Channel in `CHANNELS`, y and x of the latent dimensions that a store of granularity position keeps."""
    channels = len(CHANNELS[r])
    return np.argwhere(np.add.outer(np.arange(channels), np.add.outer(np.arange(r), 2 * np.arange(r))) % 3 < 2)


def make_columns(granularity):
    pairs = {r: np.array(pairs, np.int32).reshape(-1, 2) for r, pairs in CHANNELS.items()}
    if granularity == "variate":
        return VariateColumns(pairs)
    kept = {r: kept_positions(r) for r in CHANNELS}
    return PositionColumns({r: np.hstack([pairs[r][k[:, 0]], k[:, 1:]]).astype(np.int32) for r, k in kept.items()})


def records_of(images):
    """What a specification of format version 4 says of each image besides its name."""
    splits = [("train", "val", "test", "")[i % 4] for i in range(images)]
    return {"splits": splits, "file_bytes": 1000 + 7 * np.arange(images, dtype=np.int64)}


def checksums_of(names):
    """Made up for images of these names: uint32, of which one is 0."""
    return np.array([zlib.crc32(name.encode()) if i else 0 for i, name in enumerate(names)], np.uint32)


def make_spec(images=20, row_group_size=8, codec=None, granularity="variate", **changes):
    """Of a format version below 4, unless `changes` say otherwise, as `records_of` does."""
    codec, columns = codec or IntCodec(), make_columns(granularity)
    steps = STEPS if granularity == "variate" else {r: s[kept_positions(r)[:, 0]] for r, s in STEPS.items()}
    spec = StoreSpec(
        names=[f"photo/{i:03d}-é.png" for i in range(images)],
        labels=["cat" if i % 2 else "" for i in range(images)],
        columns=columns,
        steps={r: s if codec.name == "int" else np.ones_like(s) for r, s in steps.items()},
        codec=codec,
        model=ModelRecord(hash="ab" * 32, config={"resolution": 32}, run="runs/tiny32"),
        mask={"keep": 0.03},
        image=ImageRecord(size=32, channels=3, bits=8),
        source=SourceRecord(fingerprint="cd" * 32, bytes=123),
        row_group_size=row_group_size,
        chunk_bytes=4096,
    )
    return dataclasses.replace(spec, **changes)


def photo_latents(spec):
    """Latents with a photograph's statistics: block averages of patches, standardised, in all stored columns."""
    photo = data.astronaut().astype(np.float32).mean(axis=2) / 16 - 8
    patches = np.stack([photo[16 * i : 16 * i + 16, 8 * i : 8 * i + 16] for i in range(len(spec.names))])
    latents = {}
    for r in spec.resolutions:
        pooled = patches.reshape(len(patches), r, 16 // r, r, 16 // r).mean(axis=(2, 4))
        z = np.stack([pooled * (c + 1) for c in range(len(CHANNELS[r]))], axis=1)
        if spec.columns.granularity == "position":
            z = z[:, *kept_positions(r).T]
        latents[r] = spec.codec.encode(z, spec.columns.spread(spec.steps[r]))
    return latents


def write_all(path, spec, latents, only=None, **options):
    writer = FolderStoreWriter.create_or_resume(path, spec, **options)
    for r in writer.pending()[:only]:
        rows = slice(writer.rows(r).start, writer.rows(r).stop)
        per_image = {"checksum": checksums_of(spec.names)[rows]} if spec.has_records else {}
        writer.write(r, {k: v[rows] for k, v in latents.items()}, per_image)
    return writer


def make_store(path, spec=None, **options):
    spec = spec or make_spec()
    write_all(path, spec, photo_latents(spec), **options).publish()
    return open_store(path)


def tree(folder):
    """Content of all files below `folder`, by their path in it."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def with_attribute(group, attribute):
    """The group's zarr.json with another `hvae_codec` attribute, whose checksum is right."""
    document = json.loads(group)
    document["attributes"]["hvae_codec"] = {**attribute, "checksum": attribute_checksum(attribute)}
    return json.dumps(document)


def without_copy(path):
    """The store at `path` without the second copy of its metadata, as stores of older versions are; its metadata."""
    for name in ("zarr.json", "committed/zarr.json"):
        document = json.loads((path / name).read_text())
        document["attributes"].pop("hvae_codec_copy", None)
        (path / name).write_text(json.dumps(document))
    attribute = json.loads((path / "zarr.json").read_text())["attributes"]["hvae_codec"]
    del attribute["copy"]
    (path / "zarr.json").write_text(with_attribute((path / "zarr.json").read_text(), attribute))
    return attribute
