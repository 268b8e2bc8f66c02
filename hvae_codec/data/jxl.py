"""JPEG XL files, if the plugin of Pillow that reads them is installed: their size is read before they are decoded.

The plugin decodes a file when it is opened, and a small file can unpack to more memory than there is.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from io import BytesIO

from PIL import Image, ImageFile

MAGIC = rb"\xff\x0a|\x00\x00\x00\x0cJXL \r\n\x87\n"
"""What a bare codestream begins with, and one in a container of boxes."""

_RATIOS = ((0, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width to height, by number
_WIDTHS = (9, 13, 18, 30)  # bits of a side that is not a small multiple of 8


def jxl_plugin() -> type[ImageFile.ImageFile] | None:
    """Return what opens JPEG XL files: what was registered with Pillow, or the package pillow-jxl-plugin; or None."""
    with contextlib.suppress(ImportError):
        import pillow_jxl  # noqa: F401 - registers it
    name = Image.EXTENSION.get(".jxl", "")
    found = Image.OPEN[name][0] if name in Image.OPEN else None
    return found if isinstance(found, type) and issubclass(found, ImageFile.ImageFile) else None


def open_jxl(plugin: type[ImageFile.ImageFile], content: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """Open a file that is not larger than `max_pixels`; raises `DecompressionBombError` if it is, without decoding it.

    Raises `ValueError` if its size cannot be told, and whatever the plugin raises.
    """
    width, height = jxl_size(content)
    if width * height > max_pixels:
        raise Image.DecompressionBombError(f"{width} x {height}")
    image = plugin(BytesIO(content))
    if not getattr(image, "jpeg", False):  # decoders turn images upright, and what Exif says is not to be done again
        image.info.pop("exif", None)
    return image


def jxl_size(content: bytes) -> tuple[int, int]:
    """Read width and height from the beginning of a file; raises `ValueError` if they are not there.

    >>> jxl_size(bytes([0xFF, 0x0A, 0b01_00001_1, 0]))  # small; (1 + 1) * 8 high, and as wide
    (16, 16)
    """
    stream = next(_codestream(content), b"")
    if stream[:2] != b"\xff\x0a" or len(stream) < 4:
        raise ValueError("the size of this JPEG XL image cannot be read")
    bits = _Bits(stream[2:14])
    small = bits.take(1)
    height = bits.side(small)
    over, under = _RATIOS[ratio] if (ratio := bits.take(3)) else (0, 1)
    return (height * over // under if ratio else bits.side(small)), height


class _Bits:
    """Numbers in a stream of bits, the lowest bit of each byte first."""

    def __init__(self, content: bytes) -> None:
        self._left = int.from_bytes(content, "little")

    def take(self, count: int) -> int:
        value = self._left & ((1 << count) - 1)
        self._left >>= count
        return value

    def side(self, small: int) -> int:
        """Read a height or a width in pixels."""
        return (self.take(5) + 1) * 8 if small else self.take(_WIDTHS[self.take(2)]) + 1


def _codestream(content: bytes) -> Iterator[bytes]:
    """Find the codestream, or the first part of it, in the boxes of a container."""
    if content[:2] == b"\xff\x0a":
        yield content
    offset = 0
    while offset + 16 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, offset)
        header = 16 if size == 1 else 8
        size = struct.unpack_from(">Q", content, offset + 8)[0] if size == 1 else size
        if kind in (b"jxlc", b"jxlp"):
            yield content[offset + header + (4 if kind == b"jxlp" else 0) :]
        if size < header:  # to the end of the file, or damaged
            return
        offset += size
