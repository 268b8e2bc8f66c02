from __future__ import annotations

import numpy as np
import pytest

from hvae_codec.analysis.quality import mean_squared_error, psnr, ssim


def test_psnr_of_known_errors(photo_patches):
    images = np.clip(photo_patches, 10, 245)
    for error in (1, 3, 10):
        for decoded in (images + error, images - error):
            np.testing.assert_allclose(psnr(mean_squared_error(images, decoded)), 20 * np.log10(255 / error))
    black, white = np.zeros((1, 3, 4, 4), np.uint8), np.full((1, 3, 4, 4), 255, np.uint8)
    assert psnr(mean_squared_error(black, white)) == 0.0


def test_the_error_is_an_images_own_and_psnr_that_of_all(photo_patches):
    decoded = photo_patches.copy()
    decoded[3, 1, 5, 7] ^= 64
    errors = mean_squared_error(photo_patches, decoded)
    assert errors[3] == pytest.approx(64**2 / (3 * 16 * 16))
    assert np.flatnonzero(errors).tolist() == [3]
    assert psnr(errors) == pytest.approx(10 * np.log10(255**2 * 24 * 3 * 16 * 16 / 64**2))
    assert 80 < psnr(np.zeros(3)) < np.inf


def test_ssim_is_1_for_equal_images_and_less_for_others(photo_patches):
    np.testing.assert_allclose(ssim(photo_patches, photo_patches), 1.0)
    noise = np.random.default_rng(0).integers(-20, 21, photo_patches.shape)
    noisy = np.clip(photo_patches.astype(int) + noise, 0, 255).astype(np.uint8)
    blurred = photo_patches & 0xC0
    assert (ssim(photo_patches, noisy) < 0.999).all()
    assert (ssim(photo_patches, blurred) < 0.999).all()
    np.testing.assert_allclose(ssim(photo_patches, noisy), ssim(noisy, photo_patches))


@pytest.mark.parametrize("size", [3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_small_images(cut_patches, size, channels):
    images = cut_patches(5, size, channels)
    np.testing.assert_allclose(ssim(images, images), 1.0)
    values = ssim(images, 255 - images)
    assert values.shape == (5,)
    assert (values < 1).all()


@pytest.mark.parametrize("size", [1, 2])
def test_ssim_of_the_smallest_images_compares_brightness(size: int):
    """(2ab + c) / (a² + b² + c) of each pixel, c = 2.55²."""
    one, two = (np.full((1, 1, size, size), level, np.uint8) for level in (100, 50))
    assert ssim(one, one) == pytest.approx(1.0)
    assert ssim(one, two) == pytest.approx((2 * 5000 + 2.55**2) / (12500 + 2.55**2))
