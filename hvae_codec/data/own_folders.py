"""Tells folders with results of this package, whose pictures are no images of a data set that they lie in."""

from __future__ import annotations

from collections.abc import Iterable

_MARKS = (
    {b"zarr.json"},  # a store, or another zarr array or group
    {b".zarray"},
    {b".zgroup"},
    {b"config.json", b"model.safetensors"},  # a run
    {b"cutoffs.json", b"cutoffs.csv"},  # an analysis
)
"""Files that together tell what a folder holds."""

OWN_FILES = frozenset({b"sample-data.json"})
"""Files among images that this package wrote, and that are not counted as others."""

_ENDINGS = (b".partial", b".replaced")
"""Of folders that were being written, or replaced, when a command was killed."""


def is_own_folder(name: bytes, files: Iterable[bytes]) -> bool:
    """Whether a folder, by its name and those of its files, holds a run, a store or an analysis, or a part of one.

    >>> is_own_folder(b"a", [b"config.json", b"model.safetensors"]), is_own_folder(b"cats", [b"config.json", b"1.png"])
    (True, False)
    """
    found = set().union(*_MARKS).intersection(files)
    return name.endswith(_ENDINGS) or any(marks <= found for marks in _MARKS)
