"""The head of an image: size, mode and format, read without decoding its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from PIL import ExifTags, Image

from ..storage.location import AnyPath
from .depth import has_16_bits, is_deep
from .pixels import has_more_frames, is_grey, open_image, unusable_if_damaged
from .preprocessing import Preprocessing
from .resizing import misfit

_TRANSPOSED = (5, 6, 7, 8)
"""EXIF orientations that exchange height and width."""

_NAMES = {"1": "black and white", "P": "palette", "PA": "palette", "CMYK": "CMYK"}


@dataclass(frozen=True, kw_only=True)
class ImageHead:
    """What is known of an image before it is decoded."""

    width: int
    height: int
    mode: str  # in words: grey, colour, palette with alpha, colour of more than 8 bits, ...
    format: str  # PNG, JPEG, ...; array
    channels: int  # 1 or 3, or what an array has, alpha left out
    alpha: bool = False  # whether it has an alpha channel or a transparent colour
    more_frames: bool = False  # whether it has frames or pages after the first
    deep: bool = False  # whether it has more than 8 bits per channel
    can_be_8_bits: bool = True  # whether `depth` 8 makes 8 bits of these

    def too_much(self, how: Preprocessing) -> str:
        """Say in a word or two why it is not decoded, as `UnusableImageError.reason`; empty if it is."""
        if self.format != "array" and self.width * self.height > how.max_pixels:
            return "of too many pixels"
        if self.deep and not (how.depth == 8 and self.can_be_8_bits):
            return "deeper than 8 bits"
        return ""

    def too_small(self, size: int, how: Preprocessing) -> str:
        """Say in a word or two why it cannot become one of `size` pixels; empty if it can."""
        return misfit(self.height, self.width, size, how)[1]


def read_head(file: BinaryIO, where: AnyPath, how: Preprocessing) -> ImageHead:
    """Read the head of an image file; raises `UnusableImageError` that names `where` if it cannot be read."""
    with unusable_if_damaged(where, how):
        image = open_image(file, how.max_pixels)
        return head_of(image, str(image.format))


def head_of(image: Image.Image, kind: str) -> ImageHead:
    """Describe an image that was opened, of the format `kind`; its pixels are not decoded."""
    deep = is_deep(image)
    grey = is_grey(image)
    alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    width, height = reversed(image.size) if _is_transposed(image) else image.size
    return ImageHead(
        width=width,
        height=height,
        mode=_mode(_NAMES.get(image.mode, "grey" if grey else "colour"), alpha, deep),
        format=kind,
        channels=1 if grey else 3,
        alpha=alpha,
        more_frames=has_more_frames(image),
        deep=deep,
        can_be_8_bits=not deep or has_16_bits(image),
    )


def head_of_pixels(shape: Sequence[int], dtype: Any) -> ImageHead:
    """Describe one image of an array of [..., H, W] or [..., H, W, C]; a fourth channel is alpha."""
    height, width, found = shape
    alpha, channels = found == 4, 3 if found == 4 else found
    name = {1: "grey", 3: "colour"}.get(channels, f"{channels} channels")
    deep = str(dtype) != "uint8"
    mode = _mode(name, alpha, deep)
    return ImageHead(width=width, height=height, mode=mode, format="array", channels=channels, alpha=alpha, deep=deep)


def _mode(name: str, alpha: bool, deep: bool) -> str:
    return name + (" with alpha" if alpha else "") + (", more than 8 bits" if deep else "")


def _is_transposed(image: Image.Image) -> bool:
    # A PNG without EXIF would be decoded to look for it behind the pixels.
    if image.format == "PNG" and "exif" not in image.info:
        return False
    return image.getexif().get(ExifTags.Base.Orientation) in _TRANSPOSED
