"""Tells formats that are not read, and says how to read them through Python."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import DataError
from ..storage.location import AnyPath
from .containers import Container
from .imageless_folder import names_in_imageless

_FORMATS = {
    "HDF5": re.compile(r".*\.(h5|hdf5|he5)", re.IGNORECASE),
    "LMDB": re.compile(r".*\.(lmdb|mdb)", re.IGNORECASE),
    "TFRecord": re.compile(r".*\.tfrecords?(-\d+-of-\d+)?", re.IGNORECASE),
    "FFCV": re.compile(r".*\.beton", re.IGNORECASE),
    "MDS": re.compile(r".*\.mds(\.zstd)?", re.IGNORECASE),
}
"""Formats by the names of their files."""


def is_foreign(path: Path) -> bool:
    """Whether `path` is of a format that is not read, or a folder that has no image but such a file."""
    return _format(path) is not None


def refuse_foreign(path: Path, *, size: int, channels: int) -> Container:
    """Raise `DataError` that names the format and the way through Python."""
    raise DataError(_refusal(path, _format(path)))


def refuse_name(path: AnyPath, name: str) -> None:
    """Raise that if the file `name`, which is `path` or lies in it, is of such a format."""
    if kind := _format_of(name):
        raise DataError(_refusal(path, kind))


def _refusal(path: AnyPath, kind: str | None) -> str:
    advice = "in Python, give open_images(dataset) an object whose len(dataset) and dataset[i] read it"
    return f"{path} is {kind}, which is not read; {advice}"


def _format(path: Path) -> str | None:
    inside = names_in_imageless(path, lambda name: _format_of(name) is not None) if path.is_dir() else []
    return next(filter(None, map(_format_of, [path.name, *inside])), None)


def _format_of(name: str) -> str | None:
    return next((kind for kind, files in _FORMATS.items() if files.fullmatch(name)), None)
