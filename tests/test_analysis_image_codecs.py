"""Image codecs: files that Pillow would write, and what they decode to."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from hvae_codec.analysis import image_codecs as module
from hvae_codec.analysis.image_codecs import ImageCodec, image_codecs, missing_codecs
from hvae_codec.analysis.quality import mean_squared_error
from hvae_codec.errors import UsageError


def pillow_file(pixels: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(file, **options)
    return file.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
def test_files_are_those_of_pillow(cut_patches, channels):
    png, *_ = image_codecs(channels)
    jpeg = next(codec for codec in image_codecs(channels, [75]) if codec.name == "JPEG")
    for pixels in cut_patches(4, 32, channels):
        assert png.encode(pixels) == pillow_file(pixels, format="PNG", optimize=True)
        assert jpeg.encode(pixels) == pillow_file(pixels, format="JPEG", quality=75, optimize=True)
    grey = np.full((channels, 1, 1), 128, np.uint8)
    assert png.header_bytes(channels) == len(pillow_file(grey, format="PNG", optimize=True))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 5, 32])
def test_lossless_codecs_lose_nothing_and_others_less_at_higher_quality(cut_patches, channels, size):
    images = cut_patches(3, size, channels)
    errors: dict[str, list[float]] = {}
    for codec in image_codecs(channels, [10, 95]):
        files = [codec.encode(pixels) for pixels in images]
        decoded = np.stack([codec.decode(file, channels) for file in files])
        if codec.quality is None:
            np.testing.assert_array_equal(decoded, images)
        else:
            errors.setdefault(codec.name, []).append(float(mean_squared_error(images, decoded).mean()))
        assert size == 1 or all(codec.header_bytes(channels) <= len(file) for file in files), codec
    assert set(errors) == {"JPEG", "WebP", "AVIF", "JPEG XL"} - set(missing_codecs())
    assert all(low >= high for low, high in errors.values())


def test_all_codecs_are_here_and_sorted():
    assert missing_codecs() == ()
    found = [(codec.name, codec.setting) for codec in image_codecs(3, [75, 30, 30])]
    lossless = [(name, "lossless") for name in ("PNG", "WebP", "JPEG XL")]
    lossy = [(n, f"quality {q}") for n in ("JPEG", "WebP", "AVIF", "JPEG XL") for q in (30, 75)]
    assert found == lossless + lossy


def test_codecs_that_pillow_lacks_are_left_out_and_named(monkeypatch):
    missing_codecs.cache_clear()
    monkeypatch.setattr(module, "jxl_plugin", lambda: None)
    monkeypatch.setattr(module.features, "check", lambda name: name != "webp")
    try:
        assert missing_codecs() == ("WebP", "JPEG XL")
        assert {codec.name for codec in image_codecs(3)} == {"PNG", "JPEG", "AVIF"}
    finally:
        missing_codecs.cache_clear()


def test_wrong_qualities_and_images():
    for quality in (0, 101):
        with pytest.raises(UsageError, match=rf"{quality}; give 1 to 100"):
            image_codecs(3, [50, quality])
    with pytest.raises(UsageError, match=r"4 channels.*grey or RGB"):
        image_codecs(4)
    assert ImageCodec("JPEG", 30).setting == "quality 30"
