"""How near decoded images are to their originals: PSNR of a set, SSIM per image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

SMALLEST_MSE = 1e-4  # mean squared error of equal images, in place of 0: their PSNR is 88 dB, not infinite


def mean_squared_error(images: NDArray[np.uint8], decoded: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the mean squared error of uint8 [N, C, H, W] pairs, [N], in squared pixel levels."""
    return np.square(images.astype(np.float64) - decoded.astype(np.float64)).mean(axis=(1, 2, 3))


def psnr(mse: NDArray[np.float64]) -> float:
    """Return the peak signal-to-noise ratio in dB of all images together: 10 log10(255² / mean of `mse`).

    Not the mean of each image's PSNR, in which a few nearly flat images outweigh all others.
    """
    return float(10.0 * np.log10(255.0**2 / max(mse.mean(), SMALLEST_MSE)))


def ssim(images: NDArray[np.uint8], decoded: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return structural similarity (Wang et al. 2004, 7 × 7 windows) of uint8 [N, C, H, W] pairs, [N]; 1 if equal.

    Smaller images have smaller windows; below 3 × 3 a window is one pixel, and brightness alone counts.
    """
    size = images.shape[-1]
    window = min(7, size - 1 + size % 2)
    options = {"data_range": 255, "win_size": window, "use_sample_covariance": window > 1}  # of one pixel there is none
    pairs = zip(images, decoded, strict=True)
    return np.array([structural_similarity(a, b, channel_axis=0, **options) for a, b in pairs])
