"""Finds the files that one path stands for: itself, a range in braces such as `shards/{000..127}.tar`, or a folder."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..errors import DataError
from .imageless_folder import names_in_imageless
from .splits import PARTS, StatedParts, part_of_file

MOST_FILES = 1_000_000  # in one range: more are a slip of the finger

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def is_file_set(path: Path, ending: str) -> bool:
    """Whether `path` is a file of that ending, a range of them, or a folder with some and without images below it."""
    if path.is_dir():
        return _has_only(path, ending)
    return path.suffix.lower() == ending and (path.is_file() or is_range(path))


def is_range(path: Path) -> bool:
    """Whether `path` has braces, and no file has that name."""
    return has_braces(str(path)) and not path.exists()


def has_braces(text: str) -> bool:
    """Whether something in `text` is in braces, as the numbers of a range are."""
    return _BRACES.search(text) is not None


def files_of_set(path: Path, ending: str) -> dict[str, Path]:
    """Find the files that `path` stands for, by the names that they have in it.

    Raises `DataError` if one of a range is missing, or if a range is a slip.
    """
    if path.is_dir():
        return {file.relative_to(path).as_posix(): file for file in sorted(_files_below(path, ending))}
    paths = [Path(text) for text in expanded(str(path))] if is_range(path) else [path]
    missing = [file for file in paths if not file.exists()]
    if missing:
        which = f"{len(missing):,} of the {len(paths):,} files of {path} are missing, such as {missing[0]}"
        raise DataError(f"{which}; copy them, or give another range")
    above = os.path.commonpath([file.parent for file in paths])
    return {file.relative_to(above).as_posix(): file for file in paths}


def parts_of_files(files: Sequence[str], counts: Sequence[int]) -> StatedParts | None:
    """Find what images are for by the names of the files that they are in, in that order, so many in each.

    None if no name says.
    """
    parts = [part_of_file(file) for file in files]
    if not any(parts):
        return None
    numbers = [len(PARTS) if part is None else PARTS.index(part) for part in parts]
    pairs = [*zip(files, parts, strict=True)]
    sources = {part: sorted({_pattern(file) for file, of in pairs if of == part}) for part in PARTS}
    return StatedParts(np.repeat(np.array(numbers, np.int8), counts), sources)


def _pattern(file: str) -> str:
    """Write the names of all shards of a kind as one: train-*-of-*.tar."""
    return re.sub(r"\d+", "*", file)


def expanded(text: str) -> list[str]:
    """List the texts that one with braces stands for, in the order of the shell; raises `DataError` if it is a slip.

    >>> expanded("{train,val}-{08..10}.tar")[:4]
    ['train-08.tar', 'train-09.tar', 'train-10.tar', 'val-08.tar']
    """
    pieces = _BRACES.split(text)  # in turn a plain text, and what was in braces
    choices = [[piece] if i % 2 == 0 else _choices(piece, text) for i, piece in enumerate(pieces)]
    if math.prod(map(len, choices)) > MOST_FILES:
        raise DataError(f"{text} stands for more than {MOST_FILES:,} files; give a smaller range")
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _choices(text: str, whole: str) -> Sequence[str]:
    match = _RANGE.fullmatch(text)
    if match is None:
        return text.split(",")
    first, last = match.groups()
    if not 0 <= int(last) - int(first) < MOST_FILES:
        raise DataError(f"the range {{{text}}} in {whole} is empty or too long; write the smaller number first")
    width = len(first) if first.startswith("0") or len(first) == len(last) else 0
    return [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]


def _has_only(folder: Path, ending: str) -> bool:
    """Whether there are such files below `folder`, and no images."""
    return bool(names_in_imageless(folder, lambda name: True)) and any(_files_below(folder, ending))


def _files_below(folder: Path, ending: str) -> Iterator[Path]:
    for above, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(above, file) for file in files if file.lower().endswith(ending) and not file.startswith("."))
