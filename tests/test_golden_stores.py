"""Stores that earlier versions wrote are read as ever, and today's writer still writes the same files."""

from __future__ import annotations

import importlib.metadata
import json

import numpy as np
import pytest
import zarr
from other_pythons import GOLDEN, check_store, files, rewrite

from hvae_codec import LatentMask, open_store
from hvae_codec.encode.embedded_model import load_embedded
from hvae_codec.model.decoder import decoder_hash, decoder_of

NAMES = [
    "variate-int",
    "variate-float16",
    "position-int",
    "variate-copy",
    "variate-decoder",
    "records-position",
    "records-appended",
    "plain-variate",
    "archive-position",
    "archive-variate",
]


@pytest.fixture(scope="module", params=NAMES)
def golden(request):
    """A golden store's path, and what is known to be in it."""
    with np.load(GOLDEN / f"{request.param}.npz") as file:
        return GOLDEN / f"{request.param}.zarr", dict(file)


def test_every_golden_store_is_tested():
    assert {path.stem for path in GOLDEN.iterdir()} == {*NAMES, "README"}


def test_todays_reader_reads_it(golden):
    check_store(golden[0], golden[0].stem)


def test_plain_zarr_reads_it(golden):
    path, known = golden
    group = zarr.open_group(path, mode="r")
    for name in known:
        if name[0] == "z":
            codes, step = group[name][:], group[f"step{name[1:]}"][:]
            np.testing.assert_array_equal(codes * step.reshape(-1, *[1] * (codes.ndim - 2)), known[name])
    assert group["name"][:].tolist() == known["names"].tolist()
    if "checksums" in known:
        assert group["split"][:].tolist() == known["splits"].tolist()
        assert group["file_bytes"][:].tolist() == known["file_bytes"].tolist()
        assert group["checksum"][:].tolist() == known["checksums"].tolist()


def test_it_is_decoded_as_it_was(golden):
    path, known = golden
    store = open_store(path)
    model = load_embedded(open_store(GOLDEN / "variate-int.zarr"))
    assert model is not None
    images = store.decode(range(len(store)), None if store.metadata.model.embedded else model)
    assert np.abs(images.astype(int) - known["images"]).max() <= 1  # a value on the edge of rounding


def test_the_decoder_is_still_made_the_same():
    """On every machine: a damaged one is made anew, and proven by its hash."""
    model = load_embedded(open_store(GOLDEN / "variate-int.zarr"))
    store = open_store(GOLDEN / "variate-decoder.zarr")
    decoder = decoder_of(model, LatentMask.from_dict(store.mask).keep)
    assert decoder_hash(decoder) == store.metadata.model.decoder_hash


def test_todays_writer_writes_the_same(golden, tmp_path):
    path, known = golden
    store = open_store(path)
    rewrite(path, tmp_path / "out.zarr")
    versions = json.loads(str(known["versions"]))
    same_compressors = all(importlib.metadata.version(name) == version for name, version in versions.items())
    expected, written = files(path), files(tmp_path / "out.zarr")
    assert written.keys() == expected.keys()
    for name, content in expected.items():
        if name.endswith("zarr.json"):
            assert meaning(written[name], store.metadata) == meaning(content, store.metadata), name
        elif same_compressors:
            assert written[name] == content, name
    for name, z in open_store(tmp_path / "out.zarr").latents(slice(None)).items():
        np.testing.assert_array_equal(z, known[name])


def meaning(content, metadata):
    """A zarr.json without what changes with the version of this package, or is not yet in a store with `metadata`."""
    document = json.loads(content)
    attributes = document["attributes"]
    if metadata.has_copy and "hvae_codec_copy" in attributes:
        attributes["hvae_codec_copy"] = json.loads(attributes["hvae_codec_copy"])
    elif not metadata.has_copy:
        attributes.pop("hvae_codec_copy", None)
        attributes.get("hvae_codec", {}).pop("copy", None)
    for group in attributes.values():
        for key in ("package_version", "checksum"):
            del group[key]
    return document
