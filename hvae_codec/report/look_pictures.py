"""Pictures in the page of a look: small ones of many images, and strips of one image at each step.

up to 64 pixels   as they are, WebP without loss
larger            small ones shrunk to 96 pixels, those of strips to 512 at most; WebP of quality 90
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from .plots import displayable

EXACT_SIZE = 64  # up to this height and width, pictures are exact
THUMBNAIL_SIZE, FRAME_SIZE = 96, 512  # height and width of larger ones, at most
QUALITY = 90
EFFORT = 50  # of packing without loss, 0 to 100: more makes no smaller files


def thumbnail(image: NDArray[np.uint8]) -> str:
    """Make the small picture of an image, uint8 [C, H, W], as a data URI."""
    return _uri([_picture(image, THUMBNAIL_SIZE)], is_exact(image.shape[-1]))


def strip(frames: Sequence[NDArray[np.uint8]]) -> str:
    """Put frames, uint8 [C, H, W], side by side in one picture; returns its data URI."""
    return _uri([_picture(frame, FRAME_SIZE) for frame in frames], is_exact(frames[0].shape[-1]))


def is_exact(size: int) -> bool:
    """Whether the pictures of images of `size` pixels, in height and width, show each pixel as it is."""
    return size <= EXACT_SIZE


def thumbnail_size(size: int) -> int:
    """Height and width of the small picture of an image of `size`, in pixels."""
    return size if is_exact(size) else min(size, THUMBNAIL_SIZE)


def frame_size(size: int) -> int:
    """Height and width of a frame of an image of `size`, in pixels."""
    return min(size, FRAME_SIZE)


def _picture(image: NDArray[np.uint8], largest: int) -> NDArray[np.uint8]:
    """Make RGB pixels [H, W, 3], shrunk to `largest` if they would not be exact."""
    picture, size = Image.fromarray(displayable(image)).convert("RGB"), image.shape[-1]
    if not is_exact(size) and size > largest:
        picture = picture.resize((largest, largest), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _uri(pictures: Sequence[NDArray[np.uint8]], exact: bool) -> str:
    """Put pictures side by side, and encode them. Pillow may be built without WebP."""
    kind, content = "webp" if features.check("webp") else "png", io.BytesIO()
    options = {"lossless": exact, "quality": EFFORT if exact else QUALITY, "method": 2} if kind == "webp" else {}
    Image.fromarray(np.concatenate(pictures, axis=1)).save(content, format=kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode('ascii')}"
