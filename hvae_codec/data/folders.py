"""Images in a folder and its subfolders, one file per image.

Names are the bytes of the file system read as UTF-8, whatever the locale.
"""

from __future__ import annotations

import os
import stat
import time
from array import array
from collections import Counter
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..texts.packed import TextPacker
from ..texts.sequence import Texts
from .celeba import celeba_parts
from .containers import FileContainer
from .dataset_json import DATASET_JSON, labels_of
from .own_folders import OWN_FILES, is_own_folder
from .pixels import EXTENSIONS, UnusableImageError
from .stamps import Stamps, file_stamp

_ENDINGS = tuple(ending.encode() for ending in EXTENSIONS)


class Folder(FileContainer):
    """The image files below `path`; names are relative to it, with slashes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._root = os.fsencode(str(self.path.absolute()))  # another process may have another working folder

    def open(self, position: int) -> BinaryIO:
        """Open the file, if it is a regular one: opening a pipe would wait for ever."""
        name = self.names[position]
        file = open(self._path(name), "rb", opener=_open_without_waiting)  # noqa: SIM115 - the caller closes it
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            problem = f"{self.path / name} is not a regular file but a pipe, a device or a socket; remove it"
            raise UnusableImageError(problem, "not a regular file")
        return file

    def locations(self, positions: NDArray[np.int64]) -> list[str]:
        """Give the number of each image's file on its device, which links of both kinds share; its path without one."""
        return [_file_number(self._path(self.names[i])) for i in positions.tolist()]

    def _path(self, name: str) -> bytes:
        return os.path.join(self._root, name.encode())


def _file_number(path: bytes) -> str:
    try:
        status = os.stat(path)
    except OSError:  # a dangling link: reading it names the file
        return os.fsdecode(path)
    return f"{status.st_dev}:{status.st_ino}"


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def open_folder(path: Path, *, size: int, channels: int) -> Folder:
    """List the image files below `path`; raises `DataError` if there are none, or if a name is not UTF-8."""
    listing, opened = _Listing(), time.time_ns()
    listing.add(os.fsencode(path), b"", ())
    names, own = listing.names.packed(), listing.passed_over
    if not names:
        besides = f" besides those of {min(own)}, a run, a store or an analysis" if own else ""
        raise DataError(f"there are no images in {path}{besides}; files ending in {', '.join(EXTENSIONS)} are read")
    labels, by_folder = _labels(path, names)
    others = {ending.decode(errors="backslashreplace"): number for ending, number in listing.others.items()}
    return Folder(
        path,
        names,
        labels,
        np.array(listing.sizes, np.int64),
        size=size,
        channels=channels,
        passed_over=sorted(own),
        other_files=others,
        parts=celeba_parts(path, names),
        by_folder=np.full(len(names), by_folder),
        stamps=Stamps.of_times(np.array(listing.mtimes, np.int64), np.array(listing.ctimes, np.int64), opened),
    )


def _labels(path: Path, names: Texts) -> tuple[Texts, bool]:
    stated = path / DATASET_JSON
    try:
        content = stated.read_bytes() if stated.is_file() else None
    except OSError as error:
        raise DataError(f"cannot read {stated} ({error.strerror}); make it readable, or remove it") from None
    return labels_of(names, content, str(stated))


class _Listing:
    """What was found below a folder so far, in the order of the names."""

    def __init__(self) -> None:
        self.names = TextPacker()
        self.sizes, self.mtimes, self.ctimes = array("q"), array("q"), array("q")
        self.passed_over: list[str] = []
        self.others: Counter[bytes] = Counter()  # endings of the other files

    def add(self, folder: bytes, prefix: bytes, above: tuple[bytes, ...]) -> None:
        """Add the image files in `folder`; `above` are the real folders passed, against link loops."""
        real = os.path.realpath(folder)
        if real in above:
            return
        entries = _entries(folder)
        if prefix and is_own_folder(prefix[:-1], (entry.name for entry in entries)):
            self.passed_over.append(prefix[:-1].decode(errors="backslashreplace"))
            return
        # Names of folders end in a slash here, so that all that is found is in the order of whole names.
        entries.sort(key=_sorted_by, reverse=True)
        while entries:
            entry = entries.pop()  # not kept: with what the system says of its file, it takes 700 bytes
            name = prefix + entry.name
            if entry.name.startswith(b"."):
                continue
            if _is_folder(entry):
                self.add(entry.path, name + b"/", (*above, real))
            elif name.lower().endswith(_ENDINGS):
                self.names.add(_checked_name(name, folder))
                self._add_stamp(*_stamp(entry))
            elif entry.name not in OWN_FILES:
                self.others[os.path.splitext(entry.name.lower())[1]] += 1

    def _add_stamp(self, size: int, mtime: int, ctime: int) -> None:
        self.sizes.append(size)
        self.mtimes.append(mtime)
        self.ctimes.append(ctime)


def _sorted_by(entry: os.DirEntry[bytes]) -> bytes:
    return entry.name + b"/" if _is_folder(entry) else entry.name


def _entries(folder: bytes) -> list[os.DirEntry[bytes]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"cannot list the folder {os.fsdecode(folder)} ({error.strerror}); make it readable") from None


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _checked_name(name: bytes, folder: bytes) -> bytes:
    try:
        name.decode()
    except UnicodeDecodeError:
        problem = "is not UTF-8, so no store can hold it; rename it"
        raise DataError(f"the file name {os.fsdecode(name)!r} in {os.fsdecode(folder)} {problem}") from None
    return name


def _stamp(entry: os.DirEntry[bytes]) -> tuple[int, int, int]:
    try:
        return file_stamp(entry.stat())
    except OSError:  # a dangling link: reading it names the file
        return 0, 0, 0
