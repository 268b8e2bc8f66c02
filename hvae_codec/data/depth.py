"""Images of more than 8 bits per channel: finds them, and makes those of 16 bits 8-bit ones, by value / 257."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

_COLOUR_MODES = ("RGB;16", "RGBA;16", "LA;16")
_HIGH_FIRST = {"B": True, "L": False, "N": sys.byteorder == "big"}
"""Whether the high byte of a raw mode's 16 bits comes first, by its last letter."""


def to_8_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Divide values of 0 to 65,535 by 257, rounded to the nearest.

    >>> to_8_bits(np.array([0, 128, 129, 32_768, 65_535]))
    array([  0,   0,   1, 128, 255], dtype=uint8)
    """
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def is_deep(image: Image.Image) -> bool:
    """Whether an opened image has more than 8 bits per channel.

    Pillow opens colour of 16 bits as "RGB", and takes the high bytes; only its raw mode ("RGB;16B") tells.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return True
    if not isinstance(image, ImageFile.ImageFile):
        return False
    if image.format == "AVIF":
        return _avif_is_deep(image)
    if image.format == "PPM":
        return any(isinstance(tile.args, tuple) and tile.args[1] > 255 for tile in image.tile)
    return image.format in ("PNG", "TIFF") and ";16" in _raw_mode(image)  # BMP's "BGR;16" is 5-6-5


def has_16_bits(image: Image.Image) -> bool:
    """Whether `image_of_8_bits` can convert an opened image that is deep, as far as its head tells."""
    known = isinstance(image, ImageFile.ImageFile) and (
        _is_scaled_by_decoder(image) or _raw_mode(image)[:-1] in _COLOUR_MODES
    )
    return known or _is_grey_16(image)


def _is_scaled_by_decoder(image: Image.Image) -> bool:
    return image.format == "AVIF" or (image.format == "PPM" and image.mode == "RGB")


def _is_grey_16(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def image_of_8_bits(open_file: Callable[[], ImageFile.ImageFile]) -> Image.Image | None:
    """Decode a deep image, turned upright, to 8 bits per channel; None if it has not 16 bits in a way known here.

    `open_file` gives the file, not decoded yet, at every call.
    """
    image = open_file()
    if _is_scaled_by_decoder(image):
        return _upright(image)
    if _is_grey_16(image):
        values = np.asarray(_upright(image))[..., None]
    elif _raw_mode(image)[:-1] in _COLOUR_MODES:
        values = _colour_values(open_file)
    else:
        return None
    pixels = to_8_bits(values)
    if "transparency" in image.info:
        opaque = (values != np.asarray(image.info["transparency"])).any(-1, keepdims=True)
        pixels = np.concatenate([pixels, np.where(opaque, 255, 0).astype(np.uint8)], axis=-1)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _colour_values(open_file: Callable[[], ImageFile.ImageFile]) -> NDArray[np.uint16]:
    """Read all 16 bits of a file that Pillow reads one byte of, first the one and then the other; [H, W, channels]."""
    raw = _raw_mode(open_file())
    if raw.startswith("LA"):
        both = np.asarray(_upright(_as_raw(open_file(), "RGBA")))  # of the same 32 bits per pixel
        first, second = both[..., 0::2], both[..., 1::2]
        return first.astype(np.uint16) * 256 + second
    high, low = (
        np.asarray(_upright(_as_raw(open_file(), raw[:-1] + order))).astype(np.uint16)
        for order in ("BL" if _HIGH_FIRST[raw[-1]] else "LB")
    )
    return high * 256 + low


def _as_raw(image: ImageFile.ImageFile, raw: str) -> ImageFile.ImageFile:
    """Let the bytes of `image` be read as the raw mode `raw`."""
    image.tile = [
        tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw) for tile in image.tile
    ]
    return image


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """Give the first of the file's raw modes, such as "RGB;16B"; empty if it has none."""
    args = image.tile[0].args if image.tile else ""
    raw = args[0] if isinstance(args, tuple) and args else args
    return raw if isinstance(raw, str) else ""


def _upright(image: ImageFile.ImageFile) -> ImageFile.ImageFile:
    ImageOps.exif_transpose(image, in_place=True)
    return image


def _avif_is_deep(image: ImageFile.ImageFile) -> bool:
    """Whether the file says 10 or 12 bits: the AV1 configuration has that in the second bit of its third byte."""
    assert image.fp is not None
    image.fp.seek(0)
    head = image.fp.read(2**16)
    at = head.find(b"av1C")
    return at >= 0 and len(head) > at + 6 and bool(head[at + 6] & 0x40)
