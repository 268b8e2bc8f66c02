"""A store that carries its model is decoded with nothing else, and by no other model than its own."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import zarr
from typer.testing import CliRunner

from hvae_codec import open_store, verify_deep
from hvae_codec.encode.append import append
from hvae_codec.encode.embedded_model import model_weights
from hvae_codec.encode.pipeline import EncodeOptions, encode_images
from hvae_codec.errors import StoreError
from hvae_codec.model.checkpoint import load_model, model_hash
from hvae_codec.model.hvae import HVAE
from hvae_codec.prune.kl_stats import kl_stats
from hvae_codec.prune.mask import LatentMask
from hvae_codec.store.schema import WEIGHTS, WEIGHTS_CHUNK, weights_schema
from hvae_codec.verification.verify import verify
from hvae_codec_cli.app import app


@pytest.fixture(scope="module")
def made(tiny_model, tiny_run, photo_patches, tmp_path_factory):
    """A store with its model, made with a run that is gone, and the images that it decodes to."""
    folder = tmp_path_factory.mktemp("embedded")
    run = shutil.copytree(tiny_run, folder / "run")
    model = load_model(run)
    stats = kl_stats(model, photo_patches)
    options = EncodeOptions(embed="whole")
    mask = LatentMask.from_keep(stats, 0.3)
    store = encode_images(model, photo_patches, folder / "out.zarr", mask=mask, stats=stats, options=options)
    shutil.rmtree(run)
    return store, store.decode(range(24), tiny_model)


@pytest.fixture
def copy(made, tmp_path):
    """A copy of the store, to be damaged."""
    return shutil.copytree(made[0].path, tmp_path / "out.zarr")


@pytest.mark.slow
def test_decoding_needs_no_run(made, copy):
    store, images = made
    fresh = open_store(store.path)
    np.testing.assert_array_equal(fresh.decode(range(24)), images)
    assert model_hash(fresh.named_model) == store.model_hash
    assert not any(parameter.requires_grad for parameter in fresh.named_model.parameters())
    assert [z.shape[0] for z in fresh.dense(slice(2, 5))] == [3] * 4
    assert verify_deep(store.path).ok
    out = copy.parent / "images"
    result = CliRunner().invoke(app, ["decode", str(copy), str(out), "--format", "npy"])
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(np.load(out / "images.npy").transpose(0, 3, 1, 2), images)


def test_a_longer_store_carries_it_too(made, copy, cut_patches):
    store, images = made
    longer = append(open_store(copy).named_model, cut_patches(30)[24:], copy)
    np.testing.assert_array_equal(longer.decode(range(24)), images)
    assert len(longer.decode(range(30))) == 30
    assert longer.arrays.read("model").tobytes() == store.arrays.read("model").tobytes()
    assert verify(copy).ok


def test_the_same_store_otherwise(made, tiny_model, photo_patches, tmp_path):
    store, _ = made
    stats = kl_stats(tiny_model, photo_patches)
    mask = LatentMask.from_keep(stats, 0.3)
    plain = encode_images(tiny_model, photo_patches, tmp_path / "plain.zarr", mask=mask, stats=stats)
    with pytest.raises(StoreError, match="has no array model"):
        plain.arrays.read("model")
    for r, numbers in store.stored(slice(None)).items():
        np.testing.assert_array_equal(plain.stored(slice(None))[r], numbers)
    assert store.format_version == plain.format_version
    assert store.metadata.fingerprint != plain.metadata.fingerprint


def test_damaged_weights_decode_to_nothing(copy):
    chunk = copy / "model" / "c" / "0"
    content = chunk.read_bytes()
    for damaged, message in (
        (content[:-1], "array model is damaged"),
        (content[:500] + bytes([content[500] ^ 1]) + content[501:], "array model is damaged"),
        (None, "model in it is damaged"),
    ):
        chunk.unlink()
        if damaged is not None:
            chunk.write_bytes(damaged)
        assert not verify(copy).ok
        store = open_store(copy)
        assert store.latents(0)
        with pytest.raises(StoreError, match=message):
            store.decode([0])
        chunk.write_bytes(content)
    assert open_store(copy).decode([0]).shape == (1, 3, 16, 16)
    shutil.rmtree(copy / "model")
    with pytest.raises(StoreError, match="has no array model"):
        open_store(copy).decode([0])


def test_weights_of_another_model_are_refused(copy, tiny_config):
    other = model_weights(HVAE(tiny_config.model))
    shutil.rmtree(copy / "model")
    weights = weights_schema(len(other)).create(zarr.open_group(copy, mode="r+"), WEIGHTS)
    weights[:] = np.frombuffer(other, np.uint8)
    with pytest.raises(StoreError, match="is not the one that encoded"):
        open_store(copy).decode([0])


def test_weights_in_several_chunks(tmp_path):
    weights = np.random.default_rng(0).integers(0, 256, WEIGHTS_CHUNK + 17, np.uint8)
    weights_schema(len(weights)).create(zarr.create_group(tmp_path / "group"), WEIGHTS)[:] = weights
    assert (zarr.open_group(tmp_path / "group", mode="r")["model"][:] == weights).all()
    assert sorted(file.name for file in (tmp_path / "group" / "model" / "c").iterdir()) == ["0", "1"]
    codecs = json.loads((tmp_path / "group" / "model" / "zarr.json").read_text())["codecs"]
    assert [codec["name"] for codec in codecs] == ["bytes", "crc32c"]
