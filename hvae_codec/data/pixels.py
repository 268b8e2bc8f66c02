"""One image file or array -> uint8 pixels of the model's size and channels: formats, modes, crop and resize.

Grey and colour are never converted into each other, and nothing deeper than 8 bits is cut: both are errors that name
the file and the remedy.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from ..errors import DataError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""Files with these endings are images, in upper or lower case; their first bytes tell the format."""

MAX_PIXELS = 89_478_485
"""Larger images are refused (Pillow's own limit): a small file can unpack to more memory than there is."""

SMALL_FILE = 2**18
"""Bytes from which a file is not read whole before it is decoded."""

_PLUGINS: tuple[tuple[bytes, type[ImageFile.ImageFile]], ...] = (
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (b"RIFF", WebPImagePlugin.WebPImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
    (b"II*\x00", TiffImagePlugin.TiffImageFile),
    (b"MM\x00*", TiffImagePlugin.TiffImageFile),
    (b"II+\x00", TiffImagePlugin.TiffImageFile),
    (b"MM\x00+", TiffImagePlugin.TiffImageFile),
    (b"GIF8", GifImagePlugin.GifImageFile),
)


class BrokenImageError(DataError):
    """An image file that cannot be opened or decoded; `--skip-broken` leaves such files out."""


def read_image(file: BinaryIO, where: Path, channels: int) -> tuple[NDArray[np.uint8], bool]:
    """Decode one file: pixels [H, W, channels] at the file's own size, and whether an alpha channel was dropped.

    The first frame of several; turned upright as EXIF says. Palettes and CMYK become RGB, 1-bit images grey.
    Raises errors that name `where`: `BrokenImageError` if the file is damaged, `DataError` if it is too deep, too
    large, or grey if colour is needed and the other way round.
    """
    try:
        image = _open(_small_whole(file))
        _check_depth(image, where)
        _check_pixels(image, where)
        ImageOps.exif_transpose(image, in_place=True)
        plain, alpha = _to_grey_or_rgb(image)
    except (DataError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise DataError(_too_large(where)) from None
    except Exception as error:  # Pillow's plugins raise nearly every type there is on damaged bytes
        raise broken_image(where, error) from None
    pixels = np.asarray(plain)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    _check_channels(where, pixels.shape[2], channels)
    return pixels, alpha


def broken_image(where: Path, error: Exception) -> BrokenImageError:
    """Make the error for a file `where` that cannot be opened or decoded because of `error`."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return BrokenImageError(f"{where} is broken, truncated or unreadable ({reason}); remove it or pass --skip-broken")


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
    return np.stack([_resize_plane(plane, size) for plane in planes])


def colours(channels: int) -> str:
    """Say the channel count in words.

    >>> colours(3)
    'colour (3 channels)'
    """
    word = {1: "grey (1 channel)", 3: f"colour ({channels} channels)"}
    return word.get(channels, f"of {channels} channels")


def _resize_plane(plane: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    # Pillow resizes each band of an RGB image on its own, so a plane at a time gives the same pixels for any C.
    image = Image.fromarray(np.ascontiguousarray(plane))
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))


def _small_whole(file: BinaryIO) -> BinaryIO:
    """Read a small file at once; return a large one as it is.

    Pillow reads in pieces of some bytes, and at each one threads that read at the same time wait for each other.
    """
    content = file.read(SMALL_FILE)
    file.seek(0)
    return io.BytesIO(content) if len(content) < SMALL_FILE else file


def _open(file: BinaryIO) -> ImageFile.ImageFile:
    # Not Image.open: its size warning could only be caught with warnings.catch_warnings, which threads must not use.
    start = file.read(16)
    file.seek(0)
    for magic, plugin in _PLUGINS:
        if start.startswith(magic):
            return plugin(file)
    raise ValueError("it is empty" if not start else "it does not begin like a " + "/".join(e[1:] for e in EXTENSIONS))


def _check_depth(image: ImageFile.ImageFile, path: Path) -> None:
    # Pillow opens 16-bit RGB files as 8-bit "RGB"; only the tiles' raw mode ("RGB;16B") tells. BMP's "BGR;16" is 5-6-5.
    deep_raw = image.format in ("PNG", "TIFF") and any(";16" in str(tile) for tile in image.tile)
    if deep_raw or image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise DataError(
            f"{path} has more than 8 bits a channel ({image.mode}); convert it to 8 bits, for example by dividing "
            "16-bit values by 257"
        )


def _check_pixels(image: Image.Image, path: Path) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise DataError(_too_large(path, f" ({image.width} x {image.height})"))


def _too_large(path: Path, size: str = "") -> str:
    return f"{path} has more than {MAX_PIXELS} pixels{size}; scale it down or remove it"


def _to_grey_or_rgb(image: Image.Image) -> tuple[Image.Image, bool]:
    alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    # A transparent colour or palette is dropped like an alpha channel; Pillow would warn about some of them.
    image.info.pop("transparency", None)
    return image.convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB"), alpha


def _check_channels(path: Path, found: int, channels: int) -> None:
    if found != channels:
        raise DataError(
            f"{path} is {colours(found)} but the model takes images that are {colours(channels)}; train with "
            f"--set model.channels={found}, or convert the image"
        )
