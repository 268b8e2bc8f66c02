"""Images in a `.zip`: stored or deflated files, which are read at their offset and checked by their CRC-32."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..storage.location import AnyPath
from ..texts.packed import PackedTexts
from .archive_index import ArchiveIndex, remembered_index
from .archives import ArchiveContainer
from .celeba import celeba_parts
from .dataset_json import DATASET_JSON, LARGEST_DATASET_JSON, labels_of
from .member_names import checked_name, is_hidden
from .own_folders import count_endings, own_folders_among
from .pieces import Pieces, pieces_of
from .pixels import EXTENSIONS

_HEADER = struct.Struct("<4s4xH16xHH")  # of a file: signature, method, lengths of the name and of the extra field
_EXTRA_BYTES = 64  # of the extra field behind a name: times, owners and sizes of 64 bits take 20 to 56
_WINDOWS = (0, 10, 11)  # systems that made a zip, of FAT, NTFS and VFAT
_ENCRYPTED, _UTF8 = 0x1, 0x800  # bits of a member's flags


class Zip(ArchiveContainer):
    """The image files in a zip; its CRC-32s, which it has of all, are part of a fingerprint."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.seen = replace(self.seen, checksums=self._checksums, is_checked=np.ones(len(self), bool))

    checksums_are_stated = True

    def checksum(self, position: int) -> int:
        """Look it up: reading the file compares it with that."""
        return int(self._checksums[position])

    def read_checksum(self, position: int) -> int:
        """Read the file, which must have the CRC-32 that the zip says."""
        return super().checksum(position)

    def key(self, name: str) -> str:
        """Names themselves must be unique."""
        return name

    def content(self, positions: NDArray[np.int64]) -> bytes:
        """Give the CRC-32 of each image file, as the zip has it."""
        return self._checksums[positions].astype("<u4").tobytes()

    def piece(self, position: int) -> tuple[int, int, int]:
        """Find the file and the header before it, of whose length the header alone is sure: it is seldom longer."""
        archive, start = int(self._archive[position]), int(self._offsets[position])
        header = _HEADER.size + len(self.names[position].encode()) + _EXTRA_BYTES
        return archive, start, min(header + int(self._packed[position]), self.files.stamps[archive][0] - start)

    def content_of(self, position: int) -> bytes:
        """Read the file, unpack it if it is deflated, and check it."""
        archive, start, count = self.piece(position)
        piece = self.files.read(archive, start, count)
        size, packed = int(self._sizes[position]), int(self._packed[position])
        signature, method, name, extra = _HEADER.unpack_from(piece)
        if signature != b"PK\3\4":
            raise OSError("its header in the zip is damaged")
        first = _HEADER.size + name + extra
        content = piece[first : first + packed]
        if len(content) < packed:
            content += self.files.read(archive, start + first + len(content), packed - len(content))
        content = _inflated(content, size) if method == zipfile.ZIP_DEFLATED else content
        if zlib.crc32(content) != self._checksums[position]:
            raise OSError("its CRC-32 is another one")
        return content


def _inflated(content: bytes, size: int) -> bytes:
    try:
        unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, size + 1)
    except zlib.error as error:
        raise OSError(str(error)) from None
    if len(unpacked) != size:
        raise OSError("it is not of the size that the zip says")
    return unpacked


def is_zip(path: Path) -> bool:
    """Whether `path` is a zip by its ending."""
    return path.suffix.lower() == ".zip" and path.is_file()


def open_zip(path: AnyPath, *, size: int, channels: int) -> Zip:
    """List the images in a zip.

    Raises `DataError` if it is truncated or no zip, has no image, or has one that cannot be read or stored: encrypted,
    packed in another way, a link, a name that leads out of the zip, is not UTF-8, or is there twice.
    """
    files = pieces_of([path])
    index = remembered_index(path, files.stamps[0], lambda: _index(path, files))
    return Zip(path, files, [index], celeba_parts(path, index.names), size=size, channels=channels)


def _index(path: AnyPath, files: Pieces) -> ArchiveIndex:
    try:
        with files.open(0) as file, zipfile.ZipFile(file) as archive:
            members = dict(_members(path, archive))
            own = own_folders_among(members)
            labels = _labels(path, archive) if DATASET_JSON in members else None
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        problem = f"{path} cannot be read as a zip: it is truncated, damaged or no zip ({error})"
        raise DataError(f"{problem}; copy or make it again") from None
    passed_over = tuple(f"{folder}/" for folder in own)
    names = PackedTexts.of(
        sorted(name for name in members if name.lower().endswith(EXTENSIONS) and not name.startswith(passed_over))
    )
    images = [_checked(path, name, members[name]) for name in names]
    found, by_folder = labels_of(names, labels, f"{DATASET_JSON} in {path}")
    return ArchiveIndex(
        names,
        found,
        np.array([member.header_offset for member in images], np.int64),
        np.array([member.compress_size for member in images], np.int64),
        np.array([member.file_size for member in images], np.int64),
        np.array([member.CRC for member in images], np.uint32),
        np.full(len(names), by_folder),
        own,
        count_endings(name for name in members.keys() - set(names) if not name.startswith(passed_over)),
    )


def _labels(path: AnyPath, archive: zipfile.ZipFile) -> bytes:
    if archive.getinfo(DATASET_JSON).file_size > LARGEST_DATASET_JSON:
        raise DataError(f"{DATASET_JSON} in {path} is of more than {LARGEST_DATASET_JSON:,} bytes; remove it")
    return archive.read(DATASET_JSON)


def _members(path: AnyPath, archive: zipfile.ZipFile) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    """Give the files in a zip that are not hidden, with their names as in a folder."""
    seen = set()
    for member in archive.infolist():
        found = _utf8_name(path, member)
        name = checked_name(found, path)
        if found.endswith("/") or is_hidden(name):
            continue
        if name in seen:
            raise DataError(f"{path} holds {name} twice; make the zip again, or remove one with zip -d")
        seen.add(name)
        yield name, member


def _utf8_name(path: AnyPath, member: zipfile.ZipInfo) -> str:
    """Give a member's name with slashes, in UTF-8.

    Many programs write UTF-8 without saying so, and zipfile takes it for code page 437. Some on Windows write
    backslashes: their folders must say what is held out.
    """
    name = member.orig_filename
    name = name.replace("\\", "/") if member.create_system in _WINDOWS else name
    if member.flag_bits & _UTF8 or name.isascii():
        return name
    try:
        return name.encode("cp437").decode()
    except UnicodeError:
        problem = f"{path} holds {member.orig_filename!r}, whose name is not UTF-8"
        raise DataError(f"{problem}; unpack the zip, and give the folder") from None


def _checked(path: AnyPath, name: str, member: zipfile.ZipInfo) -> zipfile.ZipInfo:
    """Give a member if it can be read as an image, or raise `DataError`."""
    problem = ""
    if member.flag_bits & _ENCRYPTED:
        problem = "is encrypted"
    elif stat.S_ISLNK(member.external_attr >> 16):
        problem = "is a link"
    elif member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        problem = f"is packed by method {member.compress_type}, neither stored nor deflated"
    if problem:
        raise DataError(f"{path / name} {problem}; unpack the zip, and give the folder")
    return member
