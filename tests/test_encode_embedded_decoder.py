"""A store that carries its decoder alone is decoded with nothing else, and names the run if all of it is needed."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import zarr

from hvae_codec import LatentMask, encode_images, kl_stats, load_model, make_codec, open_store, repair, verify_deep
from hvae_codec.data.sources import as_source
from hvae_codec.encode import embedded_model
from hvae_codec.encode.append import append
from hvae_codec.encode.embedded_model import load_embedded_decoder, model_weights
from hvae_codec.encode.pipeline import EncodeOptions
from hvae_codec.errors import ModelError, StoreError, UsageError
from hvae_codec.model.checkpoint import model_hash, save_model
from hvae_codec.model.decoder import decoder_hash, decoder_of
from hvae_codec.model.hvae import HVAE
from hvae_codec.model.kept_weights import kept_hashes
from hvae_codec.report.about import describe
from hvae_codec.store.metadata import StoreMetadata
from hvae_codec.store.schema import WEIGHTS, weights_schema
from hvae_codec.verification.verify import verify
from hvae_codec_cli.app import main
from photos import save_png
from stores import tree

IMAGES, SHARD = 22, 8


@pytest.fixture(scope="module")
def images(photo_patches):
    return photo_patches[:IMAGES]


@pytest.fixture(scope="module")
def stats(tiny_model, images):
    return kl_stats(tiny_model, images)


def encode(model, images, path, stats, keep=0.3, granularity="variate", codec="int", **options):
    mask = LatentMask.from_keep(stats, keep, granularity=granularity)
    made = EncodeOptions(row_group_size=SHARD, batch_size=8, **{"embed": "decoder", **options})
    return encode_images(model, images, path, mask=mask, stats=stats, codec=make_codec(codec), options=made)


@pytest.fixture(scope="module")
def made(tiny_run, images, stats, tmp_path_factory):
    """A folder with a store, and the run that it was made with and that it cannot find."""
    folder = tmp_path_factory.mktemp("embedded")
    run = shutil.copytree(tiny_run, folder / "run")
    encode(load_model(run), images, folder / "out.zarr", stats, verify=True)
    run.rename(folder / "moved")
    return folder


@pytest.fixture
def path(made, tmp_path):
    """A copy of the store."""
    return shutil.copytree(made / "out.zarr", tmp_path / "out.zarr")


@pytest.fixture
def moved(made, tmp_path):
    """A copy of the run."""
    return shutil.copytree(made / "moved", tmp_path / "moved")


@pytest.fixture
def refused(capsys):
    """`refused(arguments)`: the sentence of a command that is refused."""

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as exit_info:
            main([str(argument) for argument in arguments])
        assert exit_info.value.code in (1, 2)
        return " ".join(capsys.readouterr().err.split())

    return run


def levels(a, b) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize(("keep", "codec"), [(0.05, "int"), (0.5, "float16"), (1.0, "int")])
def test_it_decodes_as_the_model_does(tiny_model, images, stats, tmp_path, keep, codec):
    store = encode(tiny_model, images, tmp_path / "out.zarr", stats, keep, codec=codec)
    assert levels(store.decode(range(IMAGES)), store.decode(range(IMAGES), tiny_model)) <= 1
    stored = store.stored(slice(None))
    values, expected = store.decoder().decode(stored), store.coder(tiny_model).decode(stored)
    assert (values - expected).abs().max() < 1e-5


def test_decoding_needs_no_run(path, tiny_model, capsys):
    store = open_store(path)
    images = store.decode(range(IMAGES))
    np.testing.assert_array_equal(store.decode([17, 3]), images[[17, 3]])
    assert levels(images, store.decode(range(IMAGES), tiny_model)) <= 1
    report = verify_deep(path)
    assert (report.ok, report.notes, report.images) == (True, [], IMAGES)
    out = path.parent / "images"
    with pytest.raises(SystemExit) as exit_info:
        main(["decode", str(path), str(out), "--format", "npy", "--batch-size", "64"])
    assert exit_info.value.code in (0, None), capsys.readouterr()
    np.testing.assert_array_equal(np.load(out / "images.npy").transpose(0, 3, 1, 2), images)
    assert describe(path).pairs["weights"] == "the decoder, in the store"
    assert describe(path).pairs["format version"] == "5"


def test_what_is_in_the_store(path, tiny_model, images, stats, tmp_path):
    store = open_store(path)
    whole = encode(tiny_model, images, tmp_path / "whole.zarr", stats, embed="whole", verify=True)
    plain = encode(tiny_model, images, tmp_path / "plain.zarr", stats, embed="", verify=True)
    assert (store.format_version, whole.format_version, plain.format_version) == (5, 5, 5)
    assert len({each.metadata.fingerprint for each in (store, whole, plain)}) == 3
    assert len(store.arrays.read(WEIGHTS)) < 0.6 * len(whole.arrays.read(WEIGHTS))
    attribute = json.loads((path / "zarr.json").read_text())["attributes"]["hvae_codec"]
    decoder = load_embedded_decoder(store)
    assert attribute["model"]["embedded"] == "decoder"
    assert attribute["model"]["decoder_hash"] == decoder_hash(decoder)
    assert attribute["model"]["hash"] == model_hash(tiny_model)
    typed = dataclasses.replace(StoreMetadata.from_attribute(attribute), as_read=None)
    assert json.loads(json.dumps(typed.to_attribute())) == attribute
    for resolution, numbers in plain.stored(slice(None)).items():
        np.testing.assert_array_equal(store.stored(slice(None))[resolution], numbers)


def test_older_readers_refuse_it(path, monkeypatch):
    monkeypatch.setattr("hvae_codec.store.group_file.FORMAT_VERSION", 3)
    with pytest.raises(StoreError, match="has format version 5, this package reads up to 3; update hvae-codec"):
        open_store(path)


def test_what_takes_the_whole_model_names_the_run(path, moved, refused, images):
    store = open_store(path)
    for call in (store.load_model, lambda: store.dense(3)):
        with pytest.raises(
            StoreError, match=r"carries its decoder alone: .*run, which is not here; give it as --model"
        ):
            call()
    save_png(path.parent / "photos" / "a.png", images[0])
    for command in ("append", "repair"):
        arguments = ("photos", "out.zarr") if command == "append" else ("out.zarr", "photos")
        message = refused(command, *(path.parent / name for name in arguments))
        assert "which is not here; give it as --model" in message
    model = store.load_model(run=moved)
    assert model_hash(model) == store.model_hash
    assert [z.shape[0] for z in store.dense(slice(2, 5), model)] == [3] * 4


def test_the_run_keeps_the_weights_that_append_and_repair_take(tiny_run, images, stats, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("weights"))
    store = encode(load_model(run), images, tmp_path / "out.zarr", stats)
    assert kept_hashes(run) == [store.model_hash]
    shutil.rmtree(run / "weights")
    (run / "weights").write_text("in the way")
    warnings: list[str] = []
    mask, options = LatentMask.from_keep(stats, 0.3), EncodeOptions(embed="decoder")
    arguments = {"mask": mask, "stats": stats, "options": options, "on_warning": warnings.append}
    encode_images(load_model(run), images, tmp_path / "b.zarr", **arguments)
    (warning,) = warnings
    assert "cannot be appended to or repaired any more" in warning


def test_a_longer_store_carries_it_too(path, moved, cut_patches):
    before, images = tree(path / "model"), open_store(path).decode(range(IMAGES))
    longer = append(load_model(moved), cut_patches(30)[IMAGES:], path)
    assert (len(longer), longer.format_version, tree(path / "model")) == (30, 5, before)
    np.testing.assert_array_equal(longer.decode(range(IMAGES)), images)
    assert len(longer.decode(range(30))) == 30
    assert verify_deep(path).ok


def test_append_and_repair_take_no_other_model(path, images, cut_patches, tiny_config, tmp_path):
    save_model(tmp_path / "other", tiny_config, HVAE(tiny_config.model).state_dict())
    other = load_model(tmp_path / "other")
    with pytest.raises(StoreError, match=r"made with model .*other\) is"):
        append(other, cut_patches(30)[IMAGES:], path)
    (path / "model" / "c" / "0").unlink()
    assert "carries another model than this one" in repair(path, model=other).notes[0]
    with pytest.raises(StoreError, match="made with model"):
        open_store(path).decode([0], other)


@pytest.mark.parametrize("file", ["zarr.json", "c/0"])
def test_a_damaged_decoder_is_named_and_made_anew(path, moved, images, file):
    whole = tree(path)
    (path / "model" / file).unlink()
    (damage,) = verify(path).damages
    assert (damage.file, damage.problem, list(damage.images)) == (f"model/{file}", "is missing", [])
    store = open_store(path)
    assert store.latents(0)
    with pytest.raises(
        StoreError, match="has no array model" if file == "zarr.json" else "the decoder in it is damaged"
    ):
        store.decode([0])
    assert not verify_deep(path).ok
    assert "carries a decoder that is damaged; give the run it was made with as --model" in repair(path).notes[0]
    assert repair(path, as_source(images), load_model(moved)).after.ok
    assert tree(path) == whole


def test_a_row_group_is_repaired_beside_it(path, moved, images):
    whole = tree(path)
    shard = next(file for file in (path / "z8" / "c" / "1").rglob("*") if file.is_file())
    shard.write_bytes(shard.read_bytes()[:-3])
    (path / "sketch" / "c" / "1").unlink()
    assert verify_deep(path).damaged_row_groups == [1]
    assert repair(path, as_source(images), load_model(moved)).after.ok
    assert tree(path) == whole


def test_a_decoder_that_was_replaced_is_refused(path, moved, tiny_model, stats, monkeypatch):
    other = decoder_of(tiny_model, LatentMask.from_keep(stats, 0.3).keep)
    other.output_conv.bias.data = other.output_conv.bias + 0.01
    content = model_weights(other)
    shutil.rmtree(path / "model")
    weights_schema(len(content)).create(zarr.open_group(path, mode="r+"), WEIGHTS)[:] = np.frombuffer(content, np.uint8)
    assert verify(path).ok
    monkeypatch.setattr("hvae_codec.encode.encoded_store.find_run", lambda *_: moved)  # which is no way out
    for call in (lambda: open_store(path).decode([0]), lambda: verify_deep(path)):
        with pytest.raises(StoreError, match="the decoder in it is not the one that was put in"):
            call()
    with pytest.raises(StoreError, match=r"carries decoder .* this one is"):
        open_store(path).decode([0], other)


def test_single_positions_take_the_whole_model(tiny_model, images, stats, tmp_path, refused, tiny_run):
    with pytest.raises(UsageError, match=r"needs whole variates.*give --embed whole"):
        encode(tiny_model, images, tmp_path / "out.zarr", stats, granularity="position")
    store = encode(tiny_model, images, tmp_path / "out.zarr", stats, granularity="position", embed="whole")
    assert store.format_version == 5
    options = ("--model", tiny_run, "--granularity", "position", "--embed", "decoder")
    assert "needs whole variates" in refused("encode", tmp_path, tmp_path / "b.zarr", *options)


def test_options_that_are_refused(tmp_path, refused):
    with pytest.raises(UsageError, match="embed is 'all'; give decoder or whole"):
        EncodeOptions(embed="all")
    message = refused("encode", tmp_path, tmp_path / "out.zarr", "--embed", "decoder", "--embed-model")
    assert "--embed-model means --embed whole, and --embed is decoder" in message


def test_a_decoder_that_decodes_otherwise_is_not_embedded(tiny_model, images, stats, tmp_path, monkeypatch):
    def wrong(model, keep):
        decoder = decoder_of(model, keep)
        decoder.output_conv.bias.data = decoder.output_conv.bias + 1e-3
        return decoder

    monkeypatch.setattr(embedded_model, "decoder_of", wrong)
    with pytest.raises(ModelError, match=r"decodes to other values than the model, by .*; give --embed whole"):
        encode(tiny_model, images, tmp_path / "out.zarr", stats)
    assert not list(tmp_path.iterdir())
