"""How near decoded images are to their originals: PSNR and SSIM per image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

SMALLEST_MSE = 1e-4
"""Mean squared error of equal images, in place of 0: their PSNR is 88 dB, not infinite."""


def psnr(images: NDArray[np.uint8], decoded: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio of uint8 [N, C, H, W] pairs in dB, [N]: 10 log10(255² / mean squared error)."""
    error = images.astype(np.float64) - decoded.astype(np.float64)
    mse = np.square(error).mean(axis=(1, 2, 3)).clip(min=SMALLEST_MSE)
    return 10.0 * np.log10(255.0**2 / mse)


def ssim(images: NDArray[np.uint8], decoded: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Structural similarity (Wang et al. 2004, 7 × 7 windows) of uint8 [N, C, H, W] pairs, [N], 1 where equal."""
    size = images.shape[-1]
    window = min(7, size - 1 + size % 2)
    pairs = zip(images, decoded, strict=True)
    values = [structural_similarity(a, b, channel_axis=0, data_range=255, win_size=window) for a, b in pairs]
    return np.array(values, dtype=np.float64)
