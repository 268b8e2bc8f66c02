from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features
from PIL.PngImagePlugin import PngImageFile

from hvae_codec.data.jxl import jxl_plugin, jxl_size
from hvae_codec.data.sources import ImageSource, open_images
from hvae_codec.errors import DataError, UsageError

COLOUR = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
GREY = COLOUR[..., 0]
LUMA = (COLOUR.astype(int) @ [19595, 38470, 7471] + 2**15) // 2**16  # ITU-R 601, in 65,536ths


def save(path: Path, pixels: np.ndarray | Image.Image, **options: object) -> None:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)


def read(path: Path, channels: int = 3, **preprocessing: object) -> tuple[np.ndarray, ImageSource]:
    source = open_images(path, size=8, channels=channels, **preprocessing)
    return source.read(range(len(source))), source


# --- colour


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    save(tmp_path / "a.png", COLOUR)
    save(tmp_path / "b.png", GREY)
    save(tmp_path / "c.png", Image.fromarray(GREY).convert("LA"))
    return tmp_path


def test_grey_among_colour_becomes_colour_and_is_counted(mixed: Path):
    pixels, source = read(mixed, 3)
    np.testing.assert_array_equal(pixels[0], COLOUR.transpose(2, 0, 1))
    np.testing.assert_array_equal(pixels[1:], np.broadcast_to(GREY, (2, 3, 8, 8)))
    assert source.recoloured == 2


def test_colour_among_grey_becomes_grey_and_is_counted(mixed: Path):
    pixels, source = read(mixed, 1)
    np.testing.assert_array_equal(pixels[0, 0], LUMA)
    np.testing.assert_array_equal(pixels[1:], np.broadcast_to(GREY, (2, 1, 8, 8)))
    assert source.recoloured == 1


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_deep_grey_is_no_colour_image(tmp_path: Path, kind: type):
    save(tmp_path / "a.png", GREY)
    save(tmp_path / f"b.{'png' if kind is np.uint16 else 'tif'}", GREY.astype(kind))
    with pytest.raises(DataError, match=r"a\.png is grey \(1 channel\).*model\.channels=1"):
        read(tmp_path, 3)
    assert {*open_images(tmp_path, size=8, channels=3).container.unusable().values()} == {"grey", "deeper than 8 bits"}
    save(tmp_path / "c.png", COLOUR)
    assert open_images(tmp_path, size=8, channels=3, skip_unusable=True).skipped.keys() == {
        p.name for p in tmp_path.glob("b.*")
    }


def test_a_set_of_the_other_kind_is_converted_only_if_that_is_asked_for(tmp_path: Path):
    save(tmp_path / "a.png", COLOUR)
    with pytest.raises(DataError, match=r"colour \(3 channels\).*model\.channels=3.*--colour grey"):
        read(tmp_path, 1)
    pixels, source = read(tmp_path, 1, colour="grey")
    np.testing.assert_array_equal(pixels[0, 0], LUMA)
    assert source.recoloured == 1
    (tmp_path / "a.png").unlink()
    save(tmp_path / "b.png", GREY)
    with pytest.raises(DataError, match=r"none of the 1 images .*--colour rgb"):
        open_images(tmp_path, size=8, channels=3, skip_unusable=True)
    np.testing.assert_array_equal(read(tmp_path, 3, colour="rgb")[0], np.broadcast_to(GREY, (1, 3, 8, 8)))


def test_arrays_are_converted_like_files(tmp_path: Path):
    np.save(tmp_path / "grey.npy", GREY[None])
    np.save(tmp_path / "rgb.npy", COLOUR[None])
    with pytest.raises(DataError, match="--colour rgb"):
        read(tmp_path / "grey.npy", 3)
    np.testing.assert_array_equal(read(tmp_path / "grey.npy", 3, colour="rgb")[0], np.broadcast_to(GREY, (1, 3, 8, 8)))
    pixels, source = read(tmp_path / "rgb.npy", 1, colour="grey")
    np.testing.assert_array_equal(pixels[0, 0], LUMA)
    assert source.recoloured == 1


def test_a_colour_that_the_model_has_not_is_refused(mixed: Path):
    with pytest.raises(UsageError, match=r"--colour is grey, .* 3 channels; .*--set model\.channels=1"):
        read(mixed, 3, colour="grey")


# --- background


def with_alpha() -> np.ndarray:
    """Opaque, half and fully transparent columns."""
    alpha = np.tile(np.array([255] * 3 + [51] * 2 + [0] * 3, np.uint8), (8, 1))
    return np.concatenate([COLOUR, alpha[..., None]], axis=2)


@pytest.mark.parametrize(
    ("background", "colour"), [("white", (255, 255, 255)), ("black", (0, 0, 0)), ("#0A14ff", (10, 20, 255))]
)
def test_transparent_pixels_show_the_background(tmp_path: Path, background: str, colour: tuple[int, int, int]):
    rgba = with_alpha()
    (tmp_path / "data").mkdir()
    save(tmp_path / "data" / "x.png", rgba)
    np.save(tmp_path / "x.npy", rgba[None])
    share = rgba[..., 3:] / 255
    expected = (rgba[..., :3] * share + np.array(colour) * (1 - share)).transpose(2, 0, 1)
    for path in (tmp_path / "data", tmp_path / "x.npy"):
        pixels, source = read(path, background=background)
        assert np.abs(pixels[0] - expected).max() <= 0.5 + 1e-9
        np.testing.assert_array_equal(pixels[0, :, :, 5:], np.array(colour)[:, None, None].repeat(8, 1).repeat(3, 2))
        assert source.alpha_dropped == 1
        np.testing.assert_array_equal(read(path)[0][0], COLOUR.transpose(2, 0, 1), "alpha is dropped without it")


def test_transparent_palettes_and_grey(tmp_path: Path):
    palette = Image.fromarray(COLOUR).quantize(4)
    save(tmp_path / "p.png", palette, transparency=0)
    clear = np.asarray(palette) == 0
    pixels, _ = read(tmp_path, background="white")
    assert clear.any()
    assert (pixels[0, :, clear] == 255).all()
    (tmp_path / "p.png").unlink()
    save(tmp_path / "la.png", Image.fromarray(np.dstack([GREY, np.where(GREY > 99, 255, 0).astype(np.uint8)])))
    pixels, _ = read(tmp_path, 1, background="white")
    np.testing.assert_array_equal(pixels[0, 0], np.where(GREY > 99, GREY, 255))


# --- size


def test_images_of_too_many_pixels(tmp_path: Path):
    save(tmp_path / "a.png", COLOUR)
    save(tmp_path / "b.png", np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(DataError, match=r"b\.png has more than 64 pixels \(30 x 20\).*--max-pixels"):
        read(tmp_path, max_pixels=64)
    source = open_images(tmp_path, size=8, channels=3, max_pixels=64, skip_unusable=True)
    assert source.skipped == {"b.png": "of too many pixels"}


# --- endings


def test_other_endings(tmp_path: Path):
    for ending, options in {"jfif": {"format": "JPEG"}, "jpe": {}, "ppm": {}, "webp": {"lossless": True}}.items():
        save(tmp_path / f"x.{ending}", COLOUR, **options)
    save(tmp_path / "y.pgm", GREY)
    (tmp_path / "z.ppm").write_text("P3 8 8 15\n" + " ".join(map(str, (COLOUR // 16).reshape(-1))))
    pixels, source = read(tmp_path)
    assert source.names == ("x.jfif", "x.jpe", "x.ppm", "x.webp", "y.pgm", "z.ppm")
    np.testing.assert_array_equal(pixels[2], COLOUR.transpose(2, 0, 1))
    np.testing.assert_array_equal(pixels[4], np.broadcast_to(GREY, (3, 8, 8)))
    np.testing.assert_array_equal(pixels[5], (COLOUR // 16 * 17).transpose(2, 0, 1))


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif(tmp_path: Path):
    smooth = np.add.outer(np.arange(8), np.arange(8)).astype(np.uint8)[..., None].repeat(3, 2) * 10
    save(tmp_path / "x.avif", smooth, quality=100, subsampling="4:4:4")
    assert np.abs(read(tmp_path)[0][0].astype(int) - smooth.transpose(2, 0, 1)).max() <= 3


@pytest.fixture
def jxl() -> None:
    """Skip if Pillow's plugin is not there."""
    pytest.importorskip("pillow_jxl")


@pytest.mark.parametrize("container", [False, True])
def test_jxl(tmp_path: Path, jxl: None, container: bool):
    save(tmp_path / "a.jxl", COLOUR, lossless=True, use_container=container)
    save(tmp_path / "b.jxl", GREY, lossless=True, use_container=container)
    pixels, source = read(tmp_path)
    assert source.names == ("a.jxl", "b.jxl")
    np.testing.assert_array_equal(pixels[0], COLOUR.transpose(2, 0, 1))
    np.testing.assert_array_equal(pixels[1], np.broadcast_to(GREY, (3, 8, 8)))


def test_a_damaged_jxl_is_named(tmp_path: Path, jxl: None):
    save(tmp_path / "a.jxl", COLOUR, lossless=True)
    (tmp_path / "a.jxl").write_bytes((tmp_path / "a.jxl").read_bytes()[:40])
    with pytest.raises(DataError, match=r"a\.jxl is broken"):
        read(tmp_path)
    (tmp_path / "a.jxl").write_bytes(b"\xff\x0a")
    with pytest.raises(DataError, match=r"a\.jxl is broken.*size"):
        read(tmp_path)


@pytest.mark.parametrize("container", [False, True])
@pytest.mark.parametrize("shape", [(16, 16), (300, 17), (30, 40), (20, 3000), (8, 24)])
def test_a_large_jxl_is_not_decoded(tmp_path: Path, jxl: None, shape: tuple[int, int], container: bool, monkeypatch):
    height, width = shape
    save(tmp_path / "a.jxl", np.zeros((*shape, 3), np.uint8), lossless=True, use_container=container)
    assert jxl_size((tmp_path / "a.jxl").read_bytes()) == (width, height)
    monkeypatch.setattr("pillow_jxl.JpegXLImagePlugin.JXLImageFile._open", lambda self: pytest.fail("it is decoded"))
    with pytest.raises(DataError, match=rf"a\.jxl has more than {height * width - 1} pixels"):
        read(tmp_path, max_pixels=height * width - 1)


def test_jxl_is_not_read_without_a_plugin(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    monkeypatch.delitem(Image.EXTENSION, ".jxl", raising=False)
    assert jxl_plugin() is None
    monkeypatch.setitem(Image.EXTENSION, ".jxl", "PNG")  # what another plugin registered
    assert jxl_plugin() is PngImageFile


def test_other_files_are_counted_by_ending(tmp_path: Path):
    save(tmp_path / "a.png", COLOUR)
    (tmp_path / "sub").mkdir()
    for name in ("b.heic", "sub/c.HEIC", "notes.txt", "README", ".hidden.txt", "sample-data.json"):
        (tmp_path / name).touch()
    source = open_images(tmp_path, size=8, channels=3)
    assert source.container.other_files == {".heic": 2, ".txt": 1, "": 1}


# --- fingerprints


def test_what_decides_the_pixels_is_in_the_fingerprint(mixed: Path):
    default = open_images(mixed, size=8, channels=3).fingerprint
    others = [{"crop": "none"}, {"crop": "celeba"}, {"resize": "area"}, {"background": "white"}]
    found = {open_images(mixed, size=8, channels=3, **options).fingerprint for options in others}
    assert len(found | {default}) == 5
    same = open_images(mixed, size=8, channels=3, depth=8, upscale=False, colour="rgb", max_pixels=99)
    assert same.fingerprint == default
