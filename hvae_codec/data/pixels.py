"""One image file or array -> uint8 pixels of the model's size and channels: formats, modes, crop and resize.

Grey and colour are never converted into each other, and nothing deeper than 8 bits is cut: both are errors that name
the file and the remedy.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from ..errors import DataError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""Files with these endings are images, in upper or lower case; their first bytes tell the format."""

MAX_PIXELS = 89_478_485
"""Larger images are refused (Pillow's own limit): a small file can unpack to more memory than there is."""

SMALL_FILE = 2**18  # bytes from which a file is not read whole before it is decoded

_MAGIC: dict[type[ImageFile.ImageFile], tuple[bytes, ...]] = {
    PngImageFile: (b"\x89PNG\r\n\x1a\n",),
    JpegImageFile: (b"\xff\xd8\xff",),
    WebPImageFile: (b"RIFF",),
    BmpImageFile: (b"BM",),
    TiffImageFile: (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"),
    GifImageFile: (b"GIF8",),
}
"""The bytes that a format's files begin with."""


class UnusableImageError(DataError):
    """An image file that the model cannot take; `--skip-broken` leaves such files out."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        """What it is, in a word or two: "broken", "grey", ..."""


class DecodedImage(NamedTuple):
    """The pixels of one file, and what of the file is not in them."""

    pixels: NDArray[np.uint8]  # [H, W, channels] at the file's own size
    alpha_dropped: bool  # whether it had an alpha channel or a transparent colour
    frames_dropped: bool  # whether it has frames or pages after the first


def read_image(file: BinaryIO, where: Path, channels: int) -> DecodedImage:
    """Decode one file: its first frame, turned upright as EXIF says. Palettes and CMYK become RGB, 1-bit images grey.

    Raises `UnusableImageError` that names `where` if the file is damaged, too deep, too large, or grey if colour is
    needed and the other way round.
    """
    with unusable_if_damaged(where):
        decoded = plain_pixels(_open(file), where)
    check_channels(decoded, where, channels)
    return decoded


@contextmanager
def unusable_if_damaged(where: Path) -> Iterator[None]:
    """Turn any error of Pillow's plugins, which raise nearly every type there is, into one that names `where`."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise _too_large(where) from None
    except Exception as error:
        raise broken_image(where, error) from None


def plain_pixels(image: Image.Image, where: Path) -> DecodedImage:
    """Decode an opened image, which is changed, to grey or RGB; raises `UnusableImageError` if it is deep or large."""
    check_depth(image, where)
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(where, f" ({image.width} x {image.height})")
    ImageOps.exif_transpose(image, in_place=True)
    plain, alpha = _to_grey_or_rgb(image)
    pixels = np.asarray(plain)
    return DecodedImage(pixels[..., None] if pixels.ndim == 2 else pixels, alpha, _has_more_frames(image))


def check_channels(decoded: DecodedImage, where: Path, channels: int) -> None:
    """Raise `UnusableImageError` if an image has other channels than the model takes."""
    found = decoded.pixels.shape[2]
    if found != channels:
        problem = f"{where} is {other_channels(found, channels)}, or convert the image"
        raise UnusableImageError(problem, "grey" if found == 1 else "colour")


def _too_large(where: Path, size: str = "") -> UnusableImageError:
    problem = f"{where} has more than {MAX_PIXELS} pixels{size}; scale it down or remove it"
    return UnusableImageError(problem, "of too many pixels")


def broken_image(where: Path, error: Exception) -> UnusableImageError:
    """Make the error for a file `where` that cannot be opened or decoded because of `error`."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return UnusableImageError(f"{where} is broken, truncated or unreadable ({reason}); remove it", "broken")


def fit(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Turn pixels [H, W, C] into [C, size, size]: the centre square, resized with Lanczos; a view if H = W = size."""
    height, width = pixels.shape[:2]
    if height == width == size:
        return pixels.transpose(2, 0, 1)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    planes = np.moveaxis(pixels[top : top + side, left : left + side], 2, 0)
    if side == size:
        return np.ascontiguousarray(planes)
    # Pillow resizes each band of an RGB image on its own, so a plane at a time gives the same pixels for any C.
    images = (Image.fromarray(np.ascontiguousarray(plane)) for plane in planes)
    return np.stack([np.asarray(image.resize((size, size), Image.Resampling.LANCZOS)) for image in images])


def other_channels(found: int, channels: int) -> str:
    """Say that images of `found` channels do not fit a model of `channels`, and the remedy."""
    words = {1: "grey (1 channel)", 3: "colour (3 channels)"}
    these, model = (words.get(number, f"of {number} channels") for number in (found, channels))
    return f"{these} but the model takes images that are {model}; train with --set model.channels={found}"


def _open(file: BinaryIO) -> ImageFile.ImageFile:
    # A small file is read at once: Pillow reads in pieces of some bytes, and at each one threads wait for each other.
    # Not Image.open: its size warning could only be caught with warnings.catch_warnings, which threads must not use.
    start = file.read(SMALL_FILE)
    file.seek(0)
    for plugin, magic in _MAGIC.items():
        if start.startswith(magic):
            return plugin(io.BytesIO(start) if len(start) < SMALL_FILE else file)
    raise ValueError("it is empty" if not start else "it does not begin like a " + "/".join(e[1:] for e in EXTENSIONS))


def check_depth(image: Image.Image, path: Path) -> None:
    """Raise `UnusableImageError` if an opened image has more than 8 bits per channel."""
    # Pillow opens 16-bit RGB files as 8-bit "RGB"; only the tiles' raw mode ("RGB;16B") tells. BMP's "BGR;16" is 5-6-5.
    deep_raw = image.format in ("PNG", "TIFF") and any(";16" in str(tile) for tile in getattr(image, "tile", ()))
    if deep_raw or image.mode in ("I", "F") or image.mode.startswith("I;"):
        remedy = "convert it to 8 bits, for example by dividing 16-bit values by 257"
        problem = f"{path} has more than 8 bits per channel ({image.mode}); {remedy}"
        raise UnusableImageError(problem, "deeper than 8 bits")


def _has_more_frames(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # GIF reads the head of the second frame; the first is good, so a damaged one is none
        return False


def _to_grey_or_rgb(image: Image.Image) -> tuple[Image.Image, bool]:
    alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    # A transparent colour or palette is dropped like an alpha channel; Pillow would warn about some of them.
    image.info.pop("transparency", None)
    return image.convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB"), alpha
