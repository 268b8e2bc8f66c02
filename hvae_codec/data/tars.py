"""Images in tars, one or a set of shards, with labels beside them as WebDataset has it, read at their offset.

a/00017.jpg  a/00017.cls          a sample: the key a/00017 is the name up to the first dot of its last part
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..storage.location import AnyPath
from ..texts.classes import ClassTexts
from ..texts.packed import PackedTexts
from ..texts.sequence import JoinedTexts
from .archive_index import ArchiveIndex, remembered_index
from .archives import ArchiveContainer
from .dataset_json import DATASET_JSON, LARGEST_DATASET_JSON, label_text, labels_of
from .file_sets import files_of_set, is_file_set, parts_of_files
from .member_names import checked_name, is_hidden
from .own_folders import count_endings, own_folders_among
from .pieces import Pieces, pieces_of
from .pixels import EXTENSIONS
from .splits import parts_in_names

_LABELS = {"cls": 4096, "json": 2**20}
"""Endings of files with a sample's label, the first one that is there counts, and how many bytes of them are read."""

_PREFETCHED = 1024  # samples whose labels are fetched ahead

_BLOCK = tarfile.BLOCKSIZE
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # what gzip, bzip2, xz and zstd begin with
_UNPACK = "unpack the tar, and give the folder"


class _Member(NamedTuple):
    offset: int  # of its first byte in the tar
    size: int  # bytes
    problem: str  # why it cannot be read; "" if it can


class Tars(ArchiveContainer):
    """The image files in one tar or a set of them."""

    def key(self, name: str) -> str:
        """A sample's key must be unique."""
        return key_of(name)

    def piece(self, position: int) -> tuple[int, int, int]:
        """Find the file."""
        return int(self._archive[position]), int(self._offsets[position]), int(self._sizes[position])

    def content_of(self, position: int) -> bytes:
        """Read the file."""
        return self.files.read(*self.piece(position))


def key_of(name: str) -> str:
    """Give the key of the sample that a file belongs to.

    >>> key_of("a.b/00017.seg.png"), key_of("00017.jpg")
    ('a.b/00017', '00017')
    """
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.partition('.')[0]}"


def is_tars(path: Path) -> bool:
    """Whether `path` is a tar, a range of tars, or a folder with tars and without images below it."""
    return is_file_set(path, ".tar")


def open_tars(path: Path, *, size: int, channels: int) -> Tars:
    """List the images in all tars that `path` stands for.

    A tar's name says what its images are for whose own names have no split folder. Raises `DataError` if one of the
    tars is missing, truncated or compressed, holds a link or a name that leads out of it, or if a key is there twice.
    """
    return tars_in(path, files_of_set(path, ".tar"), size=size, channels=channels)


def tars_in(path: AnyPath, tars: Mapping[str, AnyPath], *, size: int, channels: int) -> Tars:
    """List the images in `tars`, which lie in `path` by these names; raises like `open_tars`."""
    files = pieces_of([*tars.values()])
    indices = [*files.map(partial(_remembered, files), range(len(tars)))]
    parts = parts_of_files([*tars], [len(index) for index in indices])
    if parts is not None:
        parts = parts_in_names(JoinedTexts([index.names for index in indices])).or_else(parts)
    return Tars(path, files, indices, parts, size=size, channels=channels)


def is_compressed_tar(path: Path) -> bool:
    """Whether `path` is a compressed tar by its ending."""
    return is_named_compressed_tar(path.name) and path.is_file()


def is_named_compressed_tar(name: str) -> bool:
    """Whether a file's name ends like that of a compressed tar."""
    return re.search(r"\.(tar\.[a-z0-9]+|tgz|tbz2?|txz)$", name.lower()) is not None


def refuse_compressed_tar(path: Path, *, size: int, channels: int) -> Tars:
    """Raise `DataError` that says what to do with a compressed tar."""
    raise DataError(compressed_sentence(path))


def _remembered(files: Pieces, number: int) -> ArchiveIndex:
    return remembered_index(files.paths[number], files.stamps[number], partial(_index, files, number))


def _index(files: Pieces, number: int) -> ArchiveIndex:
    path, members = files.paths[number], _members(files, number)
    own = own_folders_among(members)
    passed_over = tuple(f"{folder}/" for folder in own)
    names = PackedTexts.of(
        sorted(name for name in members if name.lower().endswith(EXTENSIONS) and not name.startswith(passed_over))
    )
    for name in names:
        if members[name].problem:
            raise DataError(f"{path / name} {members[name].problem}; {_UNPACK}")
    offsets, sizes = (np.fromiter((members[name][i] for name in names), np.int64, len(names)) for i in (0, 1))
    labels, by_folder = _labels(files, number, names, members)
    keys = {key_of(name) for name in names}  # what else is of a sample is no image that was missed
    others = count_endings(name for name in members if key_of(name) not in keys and not name.startswith(passed_over))
    return ArchiveIndex(names, labels, offsets, sizes, sizes, np.zeros(len(names), np.uint32), by_folder, own, others)


def _members(files: Pieces, number: int) -> dict[str, _Member]:
    """Find the files and links in a tar that are not hidden, by name; raises `DataError` if it is damaged."""
    with files.open(number) as file:
        try:
            return _listed(file, files.paths[number])
        except (tarfile.TarError, OSError, ValueError, EOFError) as error:
            raise DataError(_unreadable(file, files.paths[number], str(error))) from None


def _listed(file: BinaryIO, path: AnyPath) -> dict[str, _Member]:
    members: dict[str, _Member] = {}
    with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as archive:
        for info in iter(archive.next, None):
            archive.members.clear()  # type: ignore[attr-defined]  # a million of them take gigabytes
            if info.size < 0:  # older Pythons would go back, and list the same members for ever
                raise tarfile.ReadError(f"a member at byte {info.offset:,} is of negative size")
            name = checked_name(info.name, path)
            if info.isdir() or is_hidden(name):
                continue
            if name in members:
                raise DataError(f"{path} holds {name} twice; make the tar again with one of them")
            members[name] = _Member(info.offset_data, info.size, _problem(info))
        _check_end(file, path, archive.offset)
    return members


def _problem(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return "is a link"
    return "" if info.isreg() and not info.issparse() else "is not stored as a plain file"


def _unreadable(file: BinaryIO, path: AnyPath, reason: str) -> str:
    file.seek(0)
    start = file.read(6)
    if start.startswith(_COMPRESSED):
        return compressed_sentence(path)
    return f"{path} cannot be read as a tar: it is truncated, damaged or no tar ({reason}); copy or make it again"


def compressed_sentence(path: AnyPath) -> str:
    """Say what to do with a compressed tar."""
    return f"{path} is compressed, so no image can be read without all before it; decompress it, and give the .tar"


def _check_end(file: BinaryIO, path: AnyPath, offset: int) -> None:
    """Raise `tarfile.ReadError` or `DataError` if the end mark is missing, or if there is more behind it."""
    file.seek(offset)
    mark, rest = file.read(_BLOCK), file.read(2**20)
    if len(mark) < _BLOCK or any(mark):
        raise tarfile.ReadError(f"there is no end mark at byte {offset:,}")
    if rest.strip(b"\0"):
        raise DataError(f"{path} goes on behind its end mark, like tars joined by cat; give them one by one")


def _labels(
    files: Pieces, number: int, names: Sequence[str], members: Mapping[str, _Member]
) -> tuple[ClassTexts, NDArray[np.bool_]]:
    """Find the class of each of the images `names`: in the file of its sample, in `dataset.json`, or by folder.

    Also says whose is by folder, bool [N].
    """
    path, stated = files.paths[number], members.get(DATASET_JSON)
    content = None if stated is None else files.read(number, *_begin(stated, LARGEST_DATASET_JSON))
    others, by_folder = labels_of(names, content, f"{DATASET_JSON} in {path}")
    prefetched = _each_prefetched(files, number, [_files_beside(name, members) for name in names])
    unsaid = bytearray()

    def labels() -> Iterator[str]:
        for candidates, other in zip(prefetched, others, strict=True):
            found = _label(files, number, candidates)
            unsaid.append(found is None)
            yield other if found is None else found

    return ClassTexts.of(labels()), np.frombuffer(unsaid, bool) & by_folder


def _begin(member: _Member, most: int) -> tuple[int, int]:
    """Find the offset and the count of a member's first bytes."""
    return member.offset, min(member.size, most)


_Beside = Mapping[str, tuple[int, int]]  # name of a file with a sample's label, and the piece of the tar to read


def _files_beside(name: str, members: Mapping[str, _Member]) -> _Beside:
    """Find the files that may have the label of the image `name`, the first one that has it counts."""
    names = {f"{key_of(name)}.{ending}": most for ending, most in _LABELS.items()}
    found = {beside: (members[beside], most) for beside, most in names.items() if beside in members}
    return {beside: _begin(member, most) for beside, (member, most) in found.items() if not member.problem}


def _each_prefetched(files: Pieces, number: int, beside: Sequence[_Beside]) -> Iterator[_Beside]:
    """Give each of `beside`; the files of the next ones are fetched meanwhile."""
    for first in range(0, len(beside), _PREFETCHED):
        if not first:
            files.prefetch((number, *piece) for found in beside[:_PREFETCHED] for piece in found.values())
        following = beside[first + _PREFETCHED : first + 2 * _PREFETCHED]
        files.prefetch((number, *piece) for found in following for piece in found.values())
        yield from beside[first : first + _PREFETCHED]


def _label(files: Pieces, number: int, candidates: _Beside) -> str | None:
    for beside, piece in candidates.items():
        try:
            text = files.read(number, *piece).decode()
            label = text.strip() if beside.endswith(".cls") else _label_in(json.loads(text))
        except (ValueError, RecursionError) as error:
            where = files.paths[number] / beside
            raise DataError(f"{where} cannot be read as a label ({error}); mend or remove it") from None
        if label is not None:
            return label
    return None


def _label_in(document: object) -> str | None:
    """Find the class in a sample's JSON; None if it says nothing of one."""
    if not isinstance(document, dict):
        return None
    found = [document[key] for key in ("label", "class", "cls") if key in document]
    return label_text(found[0]) if found else None
