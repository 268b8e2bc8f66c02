"""Where the images of an archive are, and a file that remembers it: listing a million members takes 8 to 27 s.

    zip, tar ──list──> ArchiveIndex <──> ~/.cache/hvae-codec/indices/HASH.npz     the hash is of path, size, times
                                                                       (of an object: its URL, size, ETag)

Nothing is ever written beside an archive. A listing that is lost or damaged is made again.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ..storage.location import AnyPath
from ..storage.user_cache import read_cached, write_cached
from ..texts.classes import ClassTexts
from ..texts.packed import PackedTexts
from .pixels import EXTENSIONS
from .stamps import FileStamp

REMEMBERED_FROM = 1000  # images; fewer are listed in 0.1 s
_VERSION = 2  # of what is remembered


@dataclass(frozen=True, eq=False)
class ArchiveIndex:
    """The images of one archive in the order of their names."""

    names: PackedTexts
    labels: ClassTexts
    offsets: NDArray[np.int64]  # in a tar, of the image's first byte; in a zip, of the header before it
    packed: NDArray[np.int64]  # bytes of each image in the archive
    sizes: NDArray[np.int64]  # bytes of each image file
    checksums: NDArray[np.uint32]  # CRC-32 of each image file; of a tar, zeros
    by_folder: NDArray[np.bool_]  # whose label is but a folder in the name
    passed_over: Sequence[str] = ()  # folders with results of this package, not images
    others: Mapping[str, int] = field(default_factory=dict)  # ending to number of the files that are not read

    def __len__(self) -> int:
        return len(self.names)


_ARRAYS = ("offsets", "packed", "sizes", "checksums", "by_folder")


def remembered_index(path: AnyPath, stamp: FileStamp, list_archive: Callable[[], ArchiveIndex]) -> ArchiveIndex:
    """Give the index of the archive at `path`, of that stamp: the remembered one, or a new one."""
    # Which files are images depends on the installed Pillow.
    key = f"{_VERSION}\0{EXTENSIONS}\0{path.absolute()}\0{stamp}"
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError, BadZipFile, RuntimeError):
        return _unpacked(read_cached("indices", key))
    index = list_archive()
    if len(index) >= REMEMBERED_FROM:
        with contextlib.suppress(UnicodeError):  # a label that is not UTF-8
            write_cached("indices", key, _packed(index))
    return index


def _packed(index: ArchiveIndex) -> bytes:
    texts = {"names": index.names, "classes": index.labels.classes, "passed_over": index.passed_over}
    arrays = {name: getattr(index, name) for name in _ARRAYS} | {"codes": index.labels.codes}
    arrays["others"] = np.frombuffer(json.dumps(dict(index.others)).encode(), np.uint8)
    for name, packed in ((name, PackedTexts.of(found)) for name, found in texts.items()):
        arrays |= {name: np.frombuffer(packed.buffer, np.uint8), f"{name}_offsets": packed.offsets}
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    return content.getvalue()


def _unpacked(content: bytes) -> ArchiveIndex:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        names, classes, passed_over = (_texts(arrays, name) for name in ("names", "classes", "passed_over"))
        labels = ClassTexts([*classes], arrays["codes"])
        numbers = {name: arrays[name] for name in _ARRAYS}
        others = json.loads(arrays["others"].tobytes())
    index = ArchiveIndex(names, labels, **numbers, passed_over=[*passed_over], others=others)
    if any(len(values) != len(index) for values in (index.labels, *numbers.values())):
        raise ValueError("it is damaged")
    return index


def _texts(arrays: Mapping[str, NDArray], name: str) -> PackedTexts:
    return PackedTexts(arrays[name].tobytes(), arrays[f"{name}_offsets"])
