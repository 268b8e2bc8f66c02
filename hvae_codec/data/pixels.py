"""One image file or array -> uint8 pixels of the model's size and channels: formats, modes, transparency, depth.

What cannot be read that way is an error that names the file and the remedy.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, features
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from ..errors import DataError
from ..storage.location import AnyPath
from . import jxl, resizing
from .depth import image_of_8_bits, is_deep
from .preprocessing import MAX_PIXELS, Preprocessing

SMALL_FILE = 2**18  # bytes from which a file is not read whole before it is decoded

_FORMATS: dict[type[ImageFile.ImageFile], tuple[bytes, tuple[str, ...]]] = {
    PngImageFile: (rb"\x89PNG\r\n\x1a\n", (".png",)),
    JpegImageFile: (rb"\xff\xd8\xff", (".jpg", ".jpeg", ".jpe", ".jfif")),
    WebPImageFile: (rb"RIFF", (".webp",)),
    BmpImageFile: (rb"BM", (".bmp",)),
    TiffImageFile: (rb"II[*+]\x00|MM\x00[*+]", (".tif", ".tiff")),
    GifImageFile: (rb"GIF8", (".gif",)),
    PpmImageFile: (rb"P[2356]\s", (".ppm", ".pgm")),
}
"""What a format's files begin with, and their endings."""

if features.check("avif"):  # Pillow has it since 11.3, if it was built with it
    from PIL.AvifImagePlugin import AvifImageFile

    _FORMATS[AvifImageFile] = (rb"....ftyp(avif|avis|mif1|msf1)", (".avif",))

if (_JXL := jxl.jxl_plugin()) is not None:
    _FORMATS[_JXL] = (jxl.MAGIC, (".jxl",))

EXTENSIONS = tuple(ending for _, endings in _FORMATS.values() for ending in endings)
"""Files with these endings are images, in upper or lower case; their first bytes tell the format."""

GREY_MODES = ("1", "L", "LA", "La")
_DEEP_GREY = ("I", "F")  # what modes of more than 8 bits begin with; all are grey
_KINDS = {1: "grey", 3: "colour"}
_AS_IS = Preprocessing()


class UnusableImageError(DataError):
    """An image file that the model cannot take; `--skip-unusable` leaves such files out."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        """What it is, in a word or two: "broken", "grey", ..."""


class DecodedImage(NamedTuple):
    """The pixels of one file, and what of the file is not in them."""

    pixels: NDArray[np.uint8]  # [H, W, channels] at the file's own size
    alpha_dropped: bool  # whether it had an alpha channel or a transparent colour
    frames_dropped: bool  # whether it has frames or pages after the first
    recoloured: bool = False  # whether it was grey and is colour now, or the other way round
    depth_reduced: bool = False  # whether it had more than 8 bits per channel


def read_image(file: BinaryIO, where: AnyPath, channels: int, how: Preprocessing = _AS_IS) -> DecodedImage:
    """Decode one file: its first frame, turned upright as EXIF says. Palettes and CMYK become RGB, 1-bit images grey.

    Grey becomes colour if `channels` is 3, and colour grey if it is 1, by ITU-R 601 luma. Raises `UnusableImageError`
    that names `where` if the file is damaged, too deep, too large, or of other channels.
    """
    with unusable_if_damaged(where, how):
        image = open_image(file, how.max_pixels)
        _check_size(image, where, how)
        deep = is_deep(image)
        upright = _of_8_bits(file, where, image.mode, how) if deep else image
        decoded = plain_pixels(upright, where, channels, how)
    return decoded._replace(frames_dropped=has_more_frames(image), depth_reduced=deep)


@contextmanager
def unusable_if_damaged(where: AnyPath, how: Preprocessing = _AS_IS) -> Iterator[None]:
    """Turn any error of Pillow's plugins, which raise nearly every type there is, into one that names `where`."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise _too_large(where, how) from None
    except Exception as error:
        raise broken_image(where, error) from None


def plain_pixels(image: Image.Image, where: AnyPath, channels: int, how: Preprocessing = _AS_IS) -> DecodedImage:
    """Decode an opened image of 8 bits, which is changed, to grey or RGB; see `read_image`."""
    _check_size(image, where, how)
    ImageOps.exif_transpose(image, in_place=True)
    found = 1 if image.mode in GREY_MODES else 3
    plain, alpha = _to_grey_or_rgb(image, channels if channels in _KINDS else found, how.background_colour)
    if channels not in _KINDS:
        raise wrong_channels(where, found, channels)
    pixels = np.asarray(plain)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return DecodedImage(pixels, alpha, has_more_frames(image), found != channels)


def _check_size(image: Image.Image, where: AnyPath, how: Preprocessing) -> None:
    if image.width * image.height > how.max_pixels:
        raise _too_large(where, how, f" ({image.width} x {image.height})")


def channels_of(file: BinaryIO) -> int:
    """Return the channels of an image file, 1 or 3, from its head; 0 if that cannot be read."""
    try:
        grey = is_grey(open_image(file))
    except Exception:  # as above
        return 0
    return 1 if grey else 3


def is_grey(image: Image.Image) -> bool:
    """Whether an opened image is grey, also with more than 8 bits."""
    # Pillow opens grey with alpha, of 16 bits, as "RGBA".
    deep_alpha = any("LA;16" in str(tile.args) for tile in getattr(image, "tile", ()))
    return image.mode in GREY_MODES or image.mode.startswith(_DEEP_GREY) or deep_alpha


def wrong_channels(where: AnyPath, found: int, channels: int) -> UnusableImageError:
    """Make the error for a file `where` of `found` channels, in a set without images of the model's `channels`."""
    problem = f"{where} is {other_channels(found, channels)}"
    return UnusableImageError(problem, _KINDS.get(found, "of other channels"))


def unfit_image(pixels: NDArray[np.uint8], where: AnyPath, size: int, how: Preprocessing) -> UnusableImageError | None:
    """Make the error for a file `where` whose pixels are too few for what `how` does to them; None if they are not."""
    height, width, _ = pixels.shape
    problem, reason = resizing.misfit(height, width, size, how)
    return UnusableImageError(f"{where} {problem}; remove it", reason) if problem else None


def _too_large(where: AnyPath, how: Preprocessing, size: str = "") -> UnusableImageError:
    remedy = "scale it down, remove it, or allow it with --max-pixels"
    return UnusableImageError(f"{where} has more than {how.max_pixels} pixels{size}; {remedy}", "of too many pixels")


def broken_image(where: AnyPath, error: Exception) -> UnusableImageError:
    """Make the error for a file `where` that cannot be opened or decoded because of `error`."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return UnusableImageError(f"{where} is broken, truncated or unreadable ({reason}); remove it", "broken")


def fit(pixels: NDArray[np.uint8], size: int, how: Preprocessing = _AS_IS) -> NDArray[np.uint8]:
    """Turn pixels [H, W, C] into [C, size, size]: cropped and resized as `how` says; a view if H = W = size."""
    return resizing.fit(pixels, size, how)


def as_channels(pixels: NDArray[np.uint8], channels: int, how: Preprocessing) -> NDArray[np.uint8]:
    """Turn pixels [H, W, 1, 3 or 4] into [H, W, 1 or 3], as those of a file; a fourth channel is alpha."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    plain, _ = _to_grey_or_rgb(image, channels, how.background_colour)
    return np.asarray(plain).reshape(*pixels.shape[:2], channels)


def other_channels(found: int, channels: int) -> str:
    """Say that images of `found` channels do not fit a model of `channels`, and the remedy."""
    words = {1: "grey (1 channel)", 3: "colour (3 channels)"}
    these, model = (words.get(number, f"of {number} channels") for number in (found, channels))
    remedy = f"convert all with --colour {'rgb' if channels == 3 else 'grey'}" if channels in words else "convert them"
    return f"{these} but the model takes images that are {model}; train with --set model.channels={found}, or {remedy}"


def open_image(file: BinaryIO, max_pixels: int = MAX_PIXELS) -> ImageFile.ImageFile:
    """Open an image file by what it begins with; its pixels are decoded later. Plugins raise errors of many types.

    JPEG XL files of more than `max_pixels` raise `DecompressionBombError`, as opening decodes them.
    """
    # A small file is read at once: Pillow reads in pieces of some bytes, and at each one threads wait for each other.
    # Not Image.open: its size warning could only be caught with warnings.catch_warnings, which threads must not use.
    start = file.read(SMALL_FILE)
    file.seek(0)
    for plugin, (magic, _) in _FORMATS.items():
        if re.match(magic, start, re.DOTALL) and plugin is _JXL:
            return jxl.open_jxl(plugin, file.read(), max_pixels)
        if re.match(magic, start, re.DOTALL):
            return plugin(io.BytesIO(start) if len(start) < SMALL_FILE else file)
    raise ValueError("it is empty" if not start else "it does not begin like a " + "/".join(e[1:] for e in EXTENSIONS))


def _of_8_bits(file: BinaryIO, where: AnyPath, mode: str, how: Preprocessing) -> Image.Image:
    def open_again() -> ImageFile.ImageFile:
        file.seek(0)
        return open_image(file, how.max_pixels)

    if how.depth != 8:
        raise too_deep(where, mode)
    image = image_of_8_bits(open_again)
    if image is None:
        raise too_deep(where, mode, can_be_converted=False)
    return image


def too_deep(where: AnyPath, mode: str, *, can_be_converted: bool = True) -> UnusableImageError:
    """Make the error for an image of more than 8 bits per channel, of Pillow's mode `mode`."""
    remedy = (
        "; give --depth 8, or divide 16-bit values by 257"
        if can_be_converted
        else (", not plainly 16; convert it to 8 bits")
    )
    return UnusableImageError(f"{where} has more than 8 bits per channel ({mode}){remedy}", "deeper than 8 bits")


def has_more_frames(image: Image.Image) -> bool:
    """Whether an opened image has frames or pages after the first."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # GIF reads the head of the second frame; the first is good, so a damaged one is none
        return False


def _to_grey_or_rgb(image: Image.Image, channels: int, background: str | None) -> tuple[Image.Image, bool]:
    """Return the image with 1 or 3 channels, on `background` if it has alpha, and whether it has."""
    alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    if alpha and background is not None:
        below = Image.new("RGBA", image.size, background)
        image = Image.alpha_composite(below, image.convert("RGBA"))
    # A transparent colour or palette is dropped like an alpha channel; Pillow would warn about some of them.
    image.info.pop("transparency", None)
    if channels == 3:
        return image.convert("RGB"), alpha
    return (image if image.mode in GREY_MODES else image.convert("RGB")).convert("L"), alpha
