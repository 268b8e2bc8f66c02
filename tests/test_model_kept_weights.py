"""A store is decoded after its run was trained on: the run keeps the weights that encoded it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from hvae_codec import LatentMask, encode_images, kl_stats, load_model, open_store, verify_deep
from hvae_codec.encode.append import append
from hvae_codec.encode.deep_verify import load_store_model
from hvae_codec.encode.pipeline import EncodeOptions
from hvae_codec.errors import StoreError
from hvae_codec.model.checkpoint import WEIGHTS_FILE, keep_weights, load_weights, model_hash, save_weights
from hvae_codec.model.hvae import HVAE
from hvae_codec.model.kept_weights import kept_hashes, kept_weights


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    ignore = shutil.ignore_patterns("weights")
    return Path(shutil.copytree(tiny_run, tmp_path / "runs" / "a", ignore=ignore))


def train_on(run: Path) -> None:
    """Replace the weights of `run` by others, as training does."""
    save_weights(run / WEIGHTS_FILE, {k: w + 0.01 for k, w in load_weights(run / WEIGHTS_FILE).items()})


def encode(model: HVAE, images: np.ndarray, path: Path, **options):
    stats = kl_stats(model, images)
    return encode_images(model, images, path, mask=LatentMask.from_keep(stats, 0.3), stats=stats, **options)


def test_all_that_takes_the_model_of_a_store_takes_its_own(run: Path, photo_patches, tmp_path: Path):
    path = tmp_path / "out.zarr"
    before = encode(load_model(run), photo_patches, path).decode(range(24))
    train_on(run)
    store = open_store(path)
    assert model_hash(load_model(run)) != store.model_hash
    np.testing.assert_array_equal(store.decode(range(24)), before)
    assert len(store.dense(0)) == 4
    assert verify_deep(path).ok
    for model in (store.load_model(run=run), load_store_model(path, run=run)):
        assert model_hash(model) == store.model_hash
    assert len(append(store.load_model(), photo_patches[:2], path, out=tmp_path / "more.zarr")) == 26
    newer = encode(load_model(run), photo_patches, tmp_path / "newer.zarr")
    assert kept_hashes(run) == sorted([store.model_hash, newer.model_hash])
    assert (open_store(path).decode(range(24)) == before).all()


def test_keeping_takes_no_room_until_the_weights_are_replaced(run: Path):
    model = load_model(run)
    for _ in range(2):
        assert keep_weights(model) == ""
        assert kept_weights(run, model_hash(model)).samefile(run / WEIGHTS_FILE)
    assert [file.name for file in (run / "weights").iterdir()] == [f"{model_hash(model)}.safetensors"]


@pytest.mark.parametrize("reason", ["replaced", "no links"])
def test_what_is_kept_is_what_was_loaded(run: Path, monkeypatch, reason: str):
    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    model = load_model(run)
    if reason == "replaced":
        train_on(run)
    else:
        monkeypatch.setattr("os.link", no_links)
    assert keep_weights(model) == ""
    kept = kept_weights(run, model_hash(model))
    assert [file.name for file in kept.parent.iterdir()] == [kept.name]
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in load_weights(kept).items())
    train_on(run)
    assert model_hash(load_model(run, kept=model_hash(model))) == model_hash(model)


def test_a_run_that_cannot_be_written_is_told_and_a_store_with_its_model_needs_none(
    run: Path, photo_patches, tmp_path: Path
):
    model, warnings = load_model(run), []
    encode(model, photo_patches, tmp_path / "a.zarr", options=EncodeOptions(embed="whole"))
    assert not (run / "weights").exists()
    (run / "weights").write_text("in the way")
    assert len(encode(model, photo_patches, tmp_path / "b.zarr", on_warning=warnings.append)) == 24
    assert len(warnings) == 1
    assert "could not be kept" in warnings[0]
    assert "File exists" in warnings[0]


def test_weights_that_are_nowhere_are_named(run: Path, photo_patches, tmp_path: Path):
    store = encode(load_model(run), photo_patches, tmp_path / "out.zarr")
    shutil.rmtree(run / "weights")
    train_on(run)
    with pytest.raises(StoreError, match=rf"made with model {store.model_hash[:12]}.*--model.*encode again"):
        open_store(store.path).decode([0])
