"""Finds the tars that one path stands for: itself, a range in braces such as `shards/{000..127}.tar`, or a folder."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import DataError
from .imageless_folder import names_in_imageless
from .pixels import EXTENSIONS
from .tars import Tars, compressed_tar, open_tars

MOST_SHARDS = 1_000_000  # in one range: more are a slip of the finger

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def is_compressed_tar(path: Path) -> bool:
    """Whether `path` is a compressed tar by its ending."""
    return re.search(r"\.(tar\.[a-z0-9]+|tgz|tbz2?|txz)$", path.name.lower()) is not None and path.is_file()


def refuse_compressed_tar(path: Path, *, size: int, channels: int) -> Tars:
    """Raise `DataError` that says what to do with a compressed tar."""
    raise DataError(compressed_tar(path))


def is_shards(path: Path) -> bool:
    """Whether `path` is a tar, a range of tars, or a folder with tars and without images below it."""
    if path.is_dir():
        return _has_tars_only(path)
    return path.suffix.lower() == ".tar" and (path.is_file() or is_range(path))


def is_range(path: Path) -> bool:
    """Whether `path` has braces, and no file has that name."""
    return _BRACES.search(str(path)) is not None and not path.exists()


def open_shards(path: Path, *, size: int, channels: int) -> Tars:
    """List the images in all tars that `path` stands for; raises `DataError` as `open_tars` does."""
    if path.is_dir():
        tars = {tar.relative_to(path).as_posix(): tar for tar in sorted(_tars_below(path))}
    else:
        paths = expanded(path) if is_range(path) else [path]
        missing = [tar for tar in paths if not tar.exists()]
        if missing:
            which = f"{len(missing):,} of the {len(paths):,} shards of {path} are missing, such as {missing[0]}"
            raise DataError(f"{which}; copy them, or give another range")
        above = os.path.commonpath([tar.parent for tar in paths])
        tars = {tar.relative_to(above).as_posix(): tar for tar in paths}
    return open_tars(path, tars, size=size, channels=channels)


def expanded(path: Path) -> list[Path]:
    """List the paths that one with braces stands for, in the order of the shell; raises `DataError` if it is a slip.

    >>> [path.name for path in expanded(Path("{train,val}-{08..10}.tar"))][:4]
    ['train-08.tar', 'train-09.tar', 'train-10.tar', 'val-08.tar']
    """
    texts = _BRACES.split(str(path))  # in turn a plain text, and what was in braces
    choices = [[text] if i % 2 == 0 else _choices(text, path) for i, text in enumerate(texts)]
    return [Path("".join(chosen)) for chosen in itertools.product(*choices)]


def _choices(text: str, path: Path) -> Sequence[str]:
    match = _RANGE.fullmatch(text)
    if match is None:
        return text.split(",")
    first, last = match.groups()
    if not 0 <= int(last) - int(first) < MOST_SHARDS:
        raise DataError(f"the range {{{text}}} in {path} is empty or too long; write the smaller number first")
    width = len(first) if first.startswith("0") or len(first) == len(last) else 0
    return [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]


def _has_tars_only(folder: Path) -> bool:
    """Whether there are tars below `folder`, and no images; it takes a moment, as the first image ends it."""
    if not names_in_imageless(folder):
        return False
    found = False
    for above, folders, files in os.walk(folder):
        visible = [file.lower() for file in files if not file.startswith(".")]
        linked = any(os.path.islink(os.path.join(above, name)) for name in folders)  # may lead to images
        if linked or any(file.endswith(EXTENSIONS) for file in visible):
            return False
        found = found or any(file.endswith(".tar") for file in visible)
    return found


def _tars_below(folder: Path) -> Iterator[Path]:
    for above, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(above, file) for file in files if file.lower().endswith(".tar") and not file.startswith("."))
