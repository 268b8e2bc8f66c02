"""Sketches of decoded images: what they tell apart, and that encode notes and verify compares them."""

from __future__ import annotations

import hashlib
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvae_codec import LatentMask, encode_images, kl_stats, open_store, verify_deep
from hvae_codec.encode.batch_coder import BatchDecoder
from hvae_codec.encode.deep_verify import IMAGE_LIMIT, ROW_GROUP_LIMIT
from hvae_codec.encode.pipeline import EncodeOptions
from hvae_codec.encode.sketch import rms_difference, sketch
from hvae_codec.errors import StoreError
from hvae_codec.writing import commit

IMAGES, SHARD = 20, 8


def rms(one, other):
    return np.sqrt(np.square(one.astype(float) - other).mean(axis=(1, 2, 3)))


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 9))
def test_a_sketch_is_what_the_format_description_says(seed, channels, size):
    pixels = np.random.default_rng(seed).integers(0, 256, (2, channels, size, size), dtype=np.uint8)
    digest = hashlib.shake_256(b"hvae-codec").digest(channels * size * size // 8 + 1)
    signs = [1 if digest[i // 8] >> (7 - i % 8) & 1 else -1 for i in range(channels * size * size)]
    assert sketch(pixels).tolist() == [int(np.dot(signs, image.ravel().astype(int))) for image in pixels]


def test_sketches_estimate_how_far_images_are_apart(cut_patches):
    images = cut_patches(256, 32)
    rng = np.random.default_rng(0)
    for noise in (1, 4, 16):
        shift = rng.integers(-noise, noise + 1, images.shape)
        other = np.clip(images + shift, 0, 255).astype(np.uint8)
        estimate = rms_difference(sketch(images), sketch(other), images[0].size)
        assert np.sqrt(np.square(estimate).mean()) == pytest.approx(
            np.sqrt(np.square(rms(images, other)).mean()), rel=0.2
        )
    assert (rms_difference(sketch(images), sketch(images), images[0].size) == 0).all()


def test_rounding_is_let_pass_and_other_images_are_not(cut_patches):
    images = cut_patches(256, 32)
    shift = np.random.default_rng(0).integers(-1, 2, images.shape)
    rounded = np.clip(images + shift, 0, 255).astype(np.uint8)
    estimate = rms_difference(sketch(images), sketch(rounded), images[0].size)
    assert estimate.max() < IMAGE_LIMIT
    assert np.sqrt(np.square(estimate).mean()) < ROW_GROUP_LIMIT
    others = np.roll(images, 1, axis=0)
    assert (rms_difference(sketch(images), sketch(others), images[0].size) > IMAGE_LIMIT).mean() > 0.8


@pytest.fixture(scope="module")
def stats(tiny_model, cut_patches):
    return kl_stats(tiny_model, cut_patches(IMAGES))


@pytest.fixture
def store(tiny_model, cut_patches, stats, tmp_path):
    options = EncodeOptions(batch_size=4, row_group_size=SHARD, verify=True)
    mask = LatentMask.from_keep(stats, 0.5)
    return encode_images(
        tiny_model, cut_patches(IMAGES), tmp_path / "out.zarr", mask=mask, stats=stats, options=options
    )


def test_encode_notes_what_images_decode_to(store, tiny_model):
    decoded = store.decode(range(IMAGES), tiny_model)
    difference = rms_difference(store.per_image("sketch"), sketch(decoded), store.image_dims)
    assert difference.max() < 0.2  # in other batches, a level here and there
    report = verify_deep(store.path, tiny_model)
    assert (report.ok, report.notes) == (True, [])


def test_latents_are_the_same_with_and_without(store, tiny_model, cut_patches, stats, tmp_path):
    options = EncodeOptions(batch_size=4, row_group_size=SHARD)
    path, mask = tmp_path / "plain.zarr", LatentMask.from_keep(stats, 0.5)
    plain = encode_images(tiny_model, cut_patches(IMAGES), path, mask=mask, stats=stats, options=options)
    for resolution, numbers in plain.stored(slice(None)).items():
        np.testing.assert_array_equal(numbers, store.stored(slice(None))[resolution])
    report = verify_deep(path, tiny_model)
    assert report.ok
    (note,) = report.notes
    assert "no sketches, see encode --verify" in note


def test_other_pixels_are_told(store, tiny_model, monkeypatch):
    decode_checked = BatchDecoder.decode_checked

    def negative(decoder, stored):
        pixels = decode_checked(decoder, stored)
        return 255 - pixels if len(pixels) == SHARD else pixels

    monkeypatch.setattr(BatchDecoder, "decode_checked", negative)
    report = verify_deep(store.path, tiny_model)
    assert [damage.file for damage in report.damages] == ["sketch/c/0", "sketch/c/1"]
    assert "other pixels" in report.damages[0].problem
    assert report.damaged_row_groups == []


def test_row_groups_that_are_damaged_are_not_decoded(store, tiny_model):
    shutil.rmtree(store.path / "z8" / "c" / "1")
    report = verify_deep(store.path, tiny_model)
    assert [damage.file for damage in report.damages] == ["z8/c/1/0/0/0"]
    shutil.rmtree(store.path / "step8" / "c")
    report = verify_deep(store.path, tiny_model)
    assert {damage.file for damage in report.damages} == {"z8/c/1/0/0/0", "step8/c/0"}
    (note,) = report.notes
    assert "not decoded: metadata or tables" in note


def test_pixels_that_are_not_finite_are_told(store, tiny_model, monkeypatch):
    def broken(decoder, stored):
        raise StoreError("pixels are not finite")

    monkeypatch.setattr(BatchDecoder, "decode_checked", broken)
    report = verify_deep(store.path, tiny_model)
    assert all(damage.problem.endswith("pixels are not finite") for damage in report.damages)
    assert report.damages


def test_what_is_not_read_back_stops_the_encode(tiny_model, cut_patches, stats, tmp_path, monkeypatch):
    real = commit.check_written

    def on_a_bad_disk(writer, row_group):
        shard = next((writer.unfinished / "z8" / "c" / str(row_group)).rglob("0"))
        while shard.is_dir():
            shard = shard / "0"
        shard.write_bytes(shard.read_bytes()[:-3])
        real(writer, row_group)

    monkeypatch.setattr(commit, "check_written", on_a_bad_disk)
    options = EncodeOptions(batch_size=4, row_group_size=SHARD, verify=True)
    mask = LatentMask.from_keep(stats, 0.5)
    with pytest.raises(StoreError, match=r"row group 0 .* check the disk"):
        encode_images(tiny_model, cut_patches(IMAGES), tmp_path / "out.zarr", mask=mask, stats=stats, options=options)
    with pytest.raises(StoreError, match="is unfinished"):
        open_store(tmp_path / "out.zarr")
