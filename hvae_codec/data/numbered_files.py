"""Checks that of files in numbered batches none is missing: a data set without one would be silently smaller."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..errors import DataError


def check_numbers(where: Path, names: Mapping[int, str]) -> None:
    """Raise `DataError` if the files `names`, by number, are not 1, 2, 3, ... without a gap.

    >>> check_numbers(Path("cifar"), {1: "data_batch_1", 2: "data_batch_2"})
    """
    missing = [number for number in range(1, max(names, default=0) + 1) if number not in names]
    if missing:
        last = names[max(names)]
        raise DataError(f"{where} has {last} but not batch {missing[0]}; copy that too")
