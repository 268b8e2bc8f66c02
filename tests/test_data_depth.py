from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hvae_codec.data.sources import ImageSource, open_images
from hvae_codec.errors import DataError

DEEP = np.random.default_rng(0).integers(0, 65536, (16, 16, 4)).astype(np.uint16)
DEEP[0, :4, 0] = 0, 128, 129, 65535  # 128 / 257 is below a half


def by_257(values: NDArray[np.uint16]) -> NDArray[np.int64]:
    return np.floor(values / 257 + 0.5).astype(int)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels: NDArray[np.uint16], *extra: bytes) -> bytes:
    """A 16-bit PNG, most of which Pillow can read but not write; uint16 [H, W, 1 to 4], and chunks before them."""
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels))
    chunks = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", data), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff(pixels: NDArray[np.uint16], order: str) -> bytes:
    """An uncompressed TIFF of 16 bits per channel, in either byte order ("<" or ">")."""
    height, width, channels = pixels.shape
    data = pixels.astype(f"{order}u2").tobytes()
    start = 8
    depths = start + len(data)
    directory = depths + 2 * channels
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, channels, depths),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, start),
        (277, 3, 1, channels),
        (278, 4, 1, height),
        (279, 4, 1, len(data)),
    ]
    entries = b"".join(
        struct.pack(f"{order}HHI", tag, kind, count)
        + (struct.pack(f"{order}HH", value, 0) if kind == 3 and count == 1 else struct.pack(f"{order}I", value))
        for tag, kind, count, value in tags
    )
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, directory)
    return (
        head
        + data
        + struct.pack(f"{order}{channels}H", *[16] * channels)
        + struct.pack(f"{order}H", len(tags))
        + entries
        + bytes(4)
    )


def pnm(pixels: NDArray[np.uint16]) -> bytes:
    kind = b"P5" if pixels.shape[2] == 1 else b"P6"
    return kind + b"\n16 16\n65535\n" + pixels.astype(">u2").tobytes()


def grey_tiff() -> bytes:
    out = io.BytesIO()
    Image.fromarray(DEEP[..., 0]).save(out, "TIFF", compression="tiff_lzw")
    return out.getvalue()


def opened(folder: Path, content: bytes, channels: int, **preprocessing: object) -> ImageSource:
    (folder / "x.png").write_bytes(content)
    return open_images(folder, size=16, channels=channels, **preprocessing)


@pytest.mark.parametrize(
    ("content", "channels"),
    [
        (png(DEEP[..., :1]), 1),
        (png(DEEP[..., :2]), 1),
        (png(DEEP[..., :3]), 3),
        (png(DEEP), 3),
        (tiff(DEEP[..., :3], "<"), 3),
        (tiff(DEEP[..., :3], ">"), 3),
        (grey_tiff(), 1),
        (pnm(DEEP[..., :1]), 1),
        (pnm(DEEP[..., :3]), 3),
    ],
    ids=["grey png", "grey-alpha png", "png", "alpha png", "tiff", "big-endian tiff", "grey tiff", "pgm", "ppm"],
)
def test_16_bits_become_8_by_value_over_257(tmp_path: Path, content: bytes, channels: int):
    with pytest.raises(DataError, match=r"x\.png has more than 8 bits per channel.*--depth 8"):
        opened(tmp_path, content, channels).read([0])
    source = opened(tmp_path, content, channels, depth=8)
    np.testing.assert_array_equal(source.read([0, 0])[0], by_257(DEEP[..., :channels]).transpose(2, 0, 1))
    assert source.depth_reduced == 1


def test_alpha_of_16_bits(tmp_path: Path):
    deep = DEEP.copy()
    deep[..., 3] = np.where(np.arange(16) < 8, 0, 65535)
    pixels = opened(tmp_path, png(deep), 3, depth=8, background="white").read([0])[0]
    np.testing.assert_array_equal(pixels[:, :, :8], 255)
    np.testing.assert_array_equal(pixels[:, :, 8:], by_257(deep[:, 8:, :3]).transpose(2, 0, 1))


def test_a_transparent_colour_of_16_bits(tmp_path: Path):
    deep = DEEP[..., :3].copy()
    deep[3, 3] = 1000, 2000, 3000
    key = chunk(b"tRNS", struct.pack(">HHH", 1000, 2000, 3000))
    source = opened(tmp_path, png(deep, key), 3, depth=8, background="#010203")
    expected = by_257(deep).transpose(2, 0, 1)
    expected[:, 3, 3] = 1, 2, 3
    np.testing.assert_array_equal(source.read([0])[0], expected)
    assert source.alpha_dropped == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_16_bits_are_turned_upright(tmp_path: Path, channels: int):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter turn clockwise
    content = png(DEEP[..., :channels], chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    pixels = opened(tmp_path, content, channels, depth=8).read([0])[0]
    np.testing.assert_array_equal(pixels, np.rot90(by_257(DEEP[..., :channels]), -1).transpose(2, 0, 1))


def test_what_has_not_16_bits_is_refused(tmp_path: Path):
    out = io.BytesIO()
    Image.fromarray(DEEP[..., 0].astype(np.float32)).save(out, "TIFF")
    with pytest.raises(DataError, match="not plainly 16; convert it"):
        opened(tmp_path, out.getvalue(), 1, depth=8).read([0])


def test_arrays_of_16_bits(tmp_path: Path):
    np.save(tmp_path / "x.npy", DEEP[None, ..., :3])
    with pytest.raises(DataError, match="holds uint16; give --depth 8"):
        open_images(tmp_path / "x.npy", size=16, channels=3)
    source = open_images(tmp_path / "x.npy", size=16, channels=3, depth=8)
    np.testing.assert_array_equal(source.read([0])[0], by_257(DEEP[..., :3]).transpose(2, 0, 1))
    assert source.depth_reduced == 1
    assert source.fingerprint != open_images(tmp_path / "x.npy", size=8, channels=3, depth=8).fingerprint


def test_a_10_bit_avif_is_deep(tmp_path: Path):
    pytest.importorskip("PIL.AvifImagePlugin")
    out = io.BytesIO()
    try:
        Image.fromarray(DEEP[..., :3].astype(np.uint8)).save(out, "AVIF")
    except (KeyError, OSError):
        pytest.skip("this Pillow was built without AVIF")
    content = bytearray(out.getvalue())
    assert opened(tmp_path, content, 3).read([0]).shape == (1, 3, 16, 16)
    content[content.index(b"av1C") + 6] |= 0x40  # what such a file says of itself, in two places
    bits = content.index(b"pixi") + 9
    content[bits : bits + 3] = 10, 10, 10
    with pytest.raises(DataError, match="more than 8 bits"):
        opened(tmp_path, content, 3).read([0])
