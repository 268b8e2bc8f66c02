"""CRC-32C at the end of an object, as zarr's codec crc32c writes it: what was stored is told from what was damaged."""

from __future__ import annotations

import google_crc32c


def with_checksum(data: bytes) -> bytes:
    """`data` and its CRC-32C, little-endian."""
    return data + int(google_crc32c.value(data)).to_bytes(4, "little")


def without_checksum(data: bytes) -> bytes:
    """`data` without the CRC-32C at its end; `ValueError` if that is another one's."""
    content = data[:-4]
    if len(data) < 4 or google_crc32c.value(content) != int.from_bytes(data[-4:], "little"):
        raise ValueError("its checksum does not match")
    return content
