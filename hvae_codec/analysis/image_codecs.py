"""Image codecs to compare a model with, as Pillow has them: a file per image, in memory.

    JPEG quality 75:   uint8 [C, H, W] ──encode──> bytes of a .jpg ──decode──> uint8 [C, H, W]
                                                   └─ header: bytes of a file of one grey pixel, encoded alike

One file per image is how data sets are kept, and what a file says before its pixels is much of a small one. What one
grey pixel takes is that part, but for the pixel's own few bits, in every format alike.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from ..data.jxl import jxl_plugin
from ..errors import UsageError

QUALITIES = (10, 30, 50, 70, 90)
FULL_COLOUR = 90  # JPEG quality from which colour has the resolution of brightness: no chroma subsampling

_MODES = {1: "L", 3: "RGB"}
_FORMATS = {"PNG": "PNG", "JPEG": "JPEG", "WebP": "WEBP", "AVIF": "AVIF", "JPEG XL": "JXL"}
"""Codecs, and Pillow's names of their formats."""


@dataclass(frozen=True)
class ImageCodec:
    """A codec at one setting."""

    name: str  # a key of `_FORMATS`
    quality: int | None = None  # of its own scale, 0 to 100; None is lossless
    options: Mapping[str, Any] = field(default_factory=dict)  # further ones of Pillow's `save`

    @property
    def setting(self) -> str:
        """Write the setting."""
        return "lossless" if self.quality is None else f"quality {self.quality}"

    def encode(self, pixels: NDArray[np.uint8]) -> bytes:
        """Make a file of uint8 [C, H, W], of 1 or 3 channels."""
        file, lossy = io.BytesIO(), {} if self.quality is None else {"quality": self.quality}
        image = Image.fromarray(np.ascontiguousarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)))
        image.save(file, _FORMATS[self.name], **lossy, **self.options)
        return file.getvalue()

    def decode(self, content: bytes, channels: int) -> NDArray[np.uint8]:
        """Decode a file that `encode` made: uint8 [C, H, W]."""
        with Image.open(io.BytesIO(content), formats=[_FORMATS[self.name]]) as image:
            pixels = np.asarray(image.convert(_MODES[channels]))
        return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)

    def header_bytes(self, channels: int) -> int:
        """Bytes of a file of one grey pixel: what a file takes whatever is in the image."""
        return len(self.encode(np.full((channels, 1, 1), 128, np.uint8)))


def image_codecs(channels: int, qualities: Sequence[int] = QUALITIES) -> list[ImageCodec]:
    """Return the codecs that Pillow has here for images of `channels`: lossless ones, and lossy ones at `qualities`.

    Raises `UsageError` if a quality is not 1 to 100, or if images are neither grey nor RGB.
    """
    if channels not in _MODES:
        raise UsageError(f"the images have {channels} channels, and image codecs are compared on grey or RGB ones only")
    if wrong := [quality for quality in qualities if not 1 <= quality <= 100]:
        raise UsageError(f"the quality of the lossy codecs is {wrong[0]}; give 1 to 100, such as 75")
    found = [*_lossless(), *(codec for quality in sorted(set(qualities)) for codec in _lossy(quality, channels))]
    order = [name for name in _FORMATS if name not in missing_codecs()]
    here = [codec for codec in found if codec.name in order]
    return sorted(here, key=lambda codec: (codec.quality is not None, order.index(codec.name), codec.quality or 0))


@cache
def missing_codecs() -> tuple[str, ...]:
    """Names of the codecs that Pillow lacks here."""
    there = {
        "PNG": features.check("zlib"),
        "JPEG": features.check("jpg"),
        "WebP": features.check("webp"),
        "AVIF": "avif" in features.modules and features.check("avif"),  # Pillow 11.3 and later
        "JPEG XL": jxl_plugin() is not None,
    }
    return tuple(name for name, is_there in there.items() if not is_there)


def _lossless() -> list[ImageCodec]:
    """Not AVIF: it rounds colours on their way to luma and chroma."""
    return [
        ImageCodec("PNG", None, {"optimize": True}),
        ImageCodec("WebP", None, {"lossless": True}),
        ImageCodec("JPEG XL", None, {"lossless": True, "num_threads": 0}),
    ]


def _lossy(quality: int, channels: int) -> list[ImageCodec]:
    """Small files, as far as they do not take many times as long."""
    jpeg, avif = ({"subsampling": "4:4:4" if quality >= FULL_COLOUR else "4:2:0"}, {"subsampling": "4:4:4"})
    of_colour = channels == 3
    return [
        ImageCodec("JPEG", quality, {"optimize": True, **(jpeg if of_colour else {})}),
        ImageCodec("WebP", quality, {"method": 6}),
        ImageCodec("AVIF", quality, {"max_threads": 1, **(avif if of_colour else {})}),
        ImageCodec("JPEG XL", quality, {"num_threads": 0}),
    ]
