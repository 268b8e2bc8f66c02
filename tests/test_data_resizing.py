from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hvae_codec.data.pixels import fit
from hvae_codec.data.preprocessing import Preprocessing
from hvae_codec.data.sources import open_images
from hvae_codec.errors import DataError

RANDOM = np.random.default_rng(0).integers(0, 256, (97, 75, 3), np.uint8)
ALIGNED = np.stack([np.add.outer(np.arange(218), np.zeros(178)), np.add.outer(np.zeros(218), np.arange(178))], axis=-1)
"""An image of CelebA's size: red says the row, green the column."""


def celeba() -> np.ndarray:
    return np.concatenate([ALIGNED, np.zeros((218, 178, 1))], axis=-1).astype(np.uint8)


def one(folder: Path, pixels: np.ndarray, size: int, **preprocessing: object) -> np.ndarray:
    Image.fromarray(pixels).save(folder / "x.png")
    np.save(folder.parent / "x.npy", pixels[None])
    file = open_images(folder, size=size, channels=3, **preprocessing).read([0])[0]
    array = open_images(folder.parent / "x.npy", size=size, channels=3, **preprocessing).read([0])[0]
    np.testing.assert_array_equal(file, array)
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def test_celeba_is_cropped_to_the_face(folder: Path):
    for crop in ("celeba", "15,40,148,148"):
        out = one(folder, celeba(), 148, crop=crop)
        np.testing.assert_array_equal(out[0], np.arange(40, 188)[:, None].repeat(148, 1))
        np.testing.assert_array_equal(out[1], np.arange(15, 163)[None].repeat(148, 0))


def test_a_box_is_cut_from_images_of_the_models_size_too(folder: Path):
    pixels = RANDOM[:16, :16]
    out = one(folder, pixels, 16, crop="4,8,8,8")
    expected = Image.fromarray(pixels).crop((4, 8, 12, 16)).resize((16, 16), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(out, np.asarray(expected).transpose(2, 0, 1))


def test_without_a_crop_the_whole_image_is_squeezed(folder: Path):
    out = one(folder, RANDOM, 16, crop="none")
    expected = Image.fromarray(RANDOM).resize((16, 16), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(out, np.asarray(expected).transpose(2, 0, 1))


def test_area_is_the_mean_of_what_a_pixel_covers(folder: Path):
    """7 pixels to 3, so that pixels are shared: exact fractions, halves up."""
    pixels = RANDOM[:7, :7]
    out = one(folder, pixels, 3, resize="area")
    share = [[max(min(3 * j + 3, 7 * i + 7) - max(3 * j, 7 * i), 0) for j in range(7)] for i in range(3)]
    for c, y, x in np.ndindex(3, 3, 3):
        total = sum(share[y][r] * share[x][s] * int(pixels[r, s, c]) for r, s in np.ndindex(7, 7))
        assert out[c, y, x] == (Fraction(total, 49) + Fraction(1, 2)).__floor__()


def test_area_of_whole_pixels_is_their_mean(folder: Path):
    pixels = RANDOM[:32, :32]
    means = pixels.reshape(8, 4, 8, 4, 3).astype(int).sum((1, 3))
    np.testing.assert_array_equal(one(folder, pixels, 8, resize="area"), ((means + 8) // 16).transpose(2, 0, 1))
    np.testing.assert_array_equal(fit(np.full((5000, 7, 1), 200, np.uint8), 4, Preprocessing(resize="area")), 200)


def test_adm_halves_then_scales_then_crops(folder: Path):
    """Of 97 x 75 pixels to 16: halved twice to 24 x 18, the shorter side to 16, and the middle of 21 x 16."""
    image = Image.fromarray(RANDOM)
    for shape in ((37, 48), (18, 24)):
        image = image.resize(shape, Image.Resampling.BOX)
    whole = np.asarray(image.resize((16, 21), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(one(folder, RANDOM, 16, resize="adm"), whole[2:18].transpose(2, 0, 1))


def test_adm_halves_are_means_of_columns_then_of_rows(folder: Path):
    pixels = RANDOM[:32, :32].astype(int)
    columns = (pixels[:, ::2] + pixels[:, 1::2] + 1) // 2
    halves = (columns[::2] + columns[1::2] + 1) // 2
    pixels = pixels.astype(np.uint8)
    np.testing.assert_array_equal(one(folder, pixels, 16, resize="adm"), halves.transpose(2, 0, 1))


def test_a_crop_comes_before_adm(folder: Path):
    out = one(folder, RANDOM, 16, resize="adm", crop="10,20,32,32")
    halves = Image.fromarray(RANDOM[20:52, 10:42]).resize((16, 16), Image.Resampling.BOX)
    np.testing.assert_array_equal(out, np.asarray(halves).transpose(2, 0, 1))
    assert one(folder, RANDOM, 16, resize="adm", crop="none").shape == (3, 16, 16)


@pytest.mark.parametrize("resize", ["lanczos", "area", "adm"])
def test_smaller_images_grow_and_equal_ones_stay(folder: Path, resize: str):
    grey = np.full((5, 7, 3), 100, np.uint8)
    np.testing.assert_array_equal(one(folder, grey, 16, resize=resize), 100)
    np.testing.assert_array_equal(one(folder, RANDOM[:16, :16], 16, resize=resize), RANDOM[:16, :16].transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("preprocessing", "message", "reason"),
    [
        ({"upscale": False}, "smaller than the model's 16 x 16, and --no-upscale", "too small"),
        ({"crop": "celeba"}, "and --crop celeba reaches beyond it", "too small for --crop"),
        ({"crop": "0,0,15,15", "upscale": False}, "of which 15 x 15 are taken, smaller", "too small"),
    ],
)
def test_images_that_are_too_small(folder: Path, preprocessing: dict, message: str, reason: str):
    small = RANDOM[:40, :15]
    Image.fromarray(small).save(folder / "small.png")
    Image.fromarray(celeba()).save(folder / "x.png")
    with pytest.raises(DataError, match=rf"small\.png is 15 x 40 pixels, {message}.*, or pass --skip-unusable"):
        open_images(folder, size=16, channels=3, **preprocessing).read([0])
    if preprocessing.get("crop") != "0,0,15,15":
        source = open_images(folder, size=16, channels=3, skip_unusable=True, **preprocessing)
        assert source.skipped == {"small.png": reason}
    np.save(folder / "x.npy", small[None])
    with pytest.raises(DataError, match=rf"x\.npy is 15 x 40 pixels, {message}"):
        open_images(folder / "x.npy", size=16, channels=3, **preprocessing)
