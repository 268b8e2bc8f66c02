"""Tells formats that are not read, and says how to read them through Python."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import DataError
from .containers import Container
from .file_sets import holds_only

_FORMATS = {
    "HDF5": re.compile(r".*\.(h5|hdf5|he5)"),
    "LMDB": re.compile(r".*\.(lmdb|mdb)"),
    "TFRecord": re.compile(r".*\.tfrecords?(-\d+-of-\d+)?"),
    "FFCV": re.compile(r".*\.beton"),
    "MDS": re.compile(r".*\.mds(\.zstd)?"),
}
"""Formats by the names of their files, in small letters."""


def is_foreign(path: Path) -> bool:
    """Whether `path` is of a format that is not read, or a folder that has no image but such a file."""
    return _format(path) is not None


def refuse_foreign(path: Path, *, size: int, channels: int) -> Container:
    """Raise `DataError` that names the format and the way through Python."""
    advice = "in Python, give open_images(dataset) an object whose len(dataset) and dataset[i] read it"
    raise DataError(f"{path} is {_format(path)}, which is not read; {advice}")


def _format(path: Path) -> str | None:
    return next((name for name, files in _FORMATS.items() if _is_of(path, files)), None)


def _is_of(path: Path, files: re.Pattern[str]) -> bool:
    return holds_only(path, files) if path.is_dir() else files.fullmatch(path.name.lower()) is not None
