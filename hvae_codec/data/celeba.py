"""What CelebA's images are for, from `list_eval_partition.txt` in their folder, or beside it or its zip.

000001.jpg 0        0 is train, 1 val, 2 test; the .csv of some copies has commas and a first line of words
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np

from ..errors import DataError
from ..storage.location import AnyPath
from ..storage.translated import AccessDeniedError
from .splits import PARTS, StatedParts, parts_in_names

_FILES = ("list_eval_partition.txt", "list_eval_partition.csv")


def celeba_parts(path: AnyPath, names: Sequence[str]) -> StatedParts | None:
    """Find what the images `names` in `path` are for; None if no such file lists one of them.

    What is in a split folder is for what that says. Raises `DataError` if the file has other lines.
    """
    inside = [] if path.name.lower().endswith(".zip") else [path / name for name in _FILES]
    whole = path.absolute()  # the folder "." has no name, and the root has none beside it
    beside = [whole.with_name(name) for name in _FILES] if whole.name else []
    file = next(filter(_is_there, [*inside, *beside]), None)
    if file is None:
        return None
    listed = _listed(file)
    found = (listed.get(name.rpartition("/")[2], len(PARTS)) for name in names)
    numbers = np.fromiter(found, np.int8, len(names))
    if not (numbers < len(PARTS)).any():
        return None
    return parts_in_names(names).or_else(StatedParts(numbers, {part: [file.name] for part in PARTS}))


def _is_there(file: AnyPath) -> bool:
    with contextlib.suppress(AccessDeniedError):  # who may only read what is there gets this for what is not
        return file.is_file()
    return False


def _listed(file: AnyPath) -> dict[str, int]:
    try:
        lines = [line.replace(",", " ").split() for line in file.read_bytes().decode().splitlines() if line]
        return {name: range(len(PARTS))[int(number)] for name, number in lines if number != "partition"}
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"{file} has other lines than 000001.jpg 0 ({error}); mend or remove it") from None
