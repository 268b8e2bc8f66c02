"""Images in a folder and its subfolders, one file per image."""

from __future__ import annotations

import os
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import DataError
from .containers import FileContainer
from .pixels import EXTENSIONS
from .splits import label_of


class Folder(FileContainer):
    """The image files below `path`; names are relative to it, with slashes."""

    def open(self, position: int) -> BinaryIO:
        """Open the file."""
        return open(self.path / self.names[position], "rb")


def open_folder(path: Path, *, size: int, channels: int) -> Folder:
    """List the image files below `path`; raises `DataError` if there are none, or if a name is not UTF-8."""
    found: list[str] = []
    sizes = array("q")  # not pairs with the names: a million of these leave 60 MB behind
    for name, count in _scan(path, "", ()):
        found.append(name)
        sizes.append(count)
    if not found:
        raise DataError(f"there are no images in {path}; files ending in {', '.join(EXTENSIONS)} are read")
    order = sorted(range(len(found)), key=found.__getitem__)
    names = tuple(found[i] for i in order)
    labels = tuple(sys.intern(label_of(name)) for name in names)  # one text per class, not one per image
    return Folder(path, names, labels, np.array(sizes, np.int64)[order], size=size, channels=channels)


def _scan(folder: Path, prefix: str, above: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """Yield name and bytes of each image file in `folder`; `above` are the real folders passed, against link loops."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"cannot list the folder {folder} ({error.strerror}); make it readable") from None
    for entry in entries:
        name = prefix + entry.name
        if entry.is_dir():
            yield from _scan(folder / entry.name, f"{name}/", (*above, real))
        elif entry.name.lower().endswith(EXTENSIONS):
            yield _checked_name(name, folder), _file_bytes(entry)


def _checked_name(name: str, folder: Path) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        problem = "is not UTF-8, so no store can hold it; rename it"
        raise DataError(f"the file name {name!r} in {folder} {problem}") from None
    return name


def _file_bytes(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a dangling link: reading it names the file
        return 0
