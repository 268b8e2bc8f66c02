"""Pictures inside the page: images side by side in one PNG, as a data URI."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SHOWN_IMAGES = 10
SHOWN_WIDTH = 768
"""Larger images are shown in smaller number: together at most so many pixels wide, but one at least."""


def shown_images(originals: NDArray[np.uint8]) -> int:
    """How many of the images, uint8 [n, C, H, W], the page shows."""
    count, _, _, width = originals.shape
    return min(count, SHOWN_IMAGES, max(1, SHOWN_WIDTH // width))


def sprite_uri(images: NDArray[np.uint8]) -> str:
    """uint8 [n, C, H, W] from left to right as a PNG of H × nW pixels: `data:image/png;base64,...`.

    One channel is grey; of four or more the first three are shown, of two the first alone.
    """
    strip = np.concatenate(list(images), axis=2)
    pixels = strip[0] if len(strip) < 3 else strip[:3].transpose(1, 2, 0)
    picture = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(picture, format="png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode('ascii')}"
