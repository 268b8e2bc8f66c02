"""Where a store is: in a folder, or in a bucket. Both have the same objects under the same names.

"out.zarr", Path("out.zarr"), "file:///data/out.zarr"   a folder, pathlib.Path
"s3://bucket/out.zarr", "gs://bucket/out.zarr"          RemotePath
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

import zarr.storage

from ..errors import UsageError
from .bucket import AT_ONCE, SCHEMES, RemotePath
from .files import sync, sync_branch

Location = Path | RemotePath
K = TypeVar("K")
V = TypeVar("V")

UNFINISHED = "unfinished.json"
"""In a bucket, what becomes a store's `zarr.json` when the store is whole."""


def location_of(where: str | Path | RemotePath) -> Location:
    """The folder or the place in a bucket that `where` names.

    >>> place_of("file:///data/out.zarr").as_posix()
    '/data/out.zarr'

    Raises `UsageError` where a URL is of an unknown kind or torn, or where the package for it is missing.
    """
    text = str(where)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", text)  # two letters at least: c:// is a drive
    if isinstance(where, Path) or not scheme:
        return _folder(text) if isinstance(where, str | Path) else where
    if scheme[1].lower() == "file":
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise UsageError(f"{text} is on another machine; give a path, or a URL such as file:///data/out.zarr")
        return Path(url2pathname(parts.path))
    if scheme[1] not in SCHEMES:
        known = ", ".join(f"{name}://" for name in (*SCHEMES, "file"))
        raise UsageError(f"{text} is a URL of an unknown kind; give a path, or one of {known}")
    return RemotePath.of(text)


def _folder(text: str) -> Path:
    """The folder `text`, which has a name: others stand beside it."""
    scheme, slash, rest = text.partition(":/")
    if slash and scheme.lower() in (*SCHEMES, "file"):  # what is left of a URL that went through a Path
        raise UsageError(f"{text} is no URL: it has one slash where two must be; give {scheme}://{rest}, as text")
    path = Path(text)
    if path.name in ("", ".."):
        path = path.resolve()
    if not path.name:
        raise UsageError(f"{text} is the root of a file system, not a store; give a folder in it")
    return path


def zarr_location(place: Location) -> Path | zarr.storage.StorePath:
    """What zarr opens, for reading."""
    return place if isinstance(place, Path) else place.zarr_location()


def files_at(place: Location) -> Iterator[tuple[str, int]]:
    """Every file of a store, relative to `place`, with slashes, and its bytes."""
    if isinstance(place, RemotePath):
        yield from place.files()
        return
    for where, _, names in os.walk(place):
        prefix = Path(where).relative_to(place).as_posix()
        for name in names:
            key = name if prefix == "." else f"{prefix}/{name}"
            yield key, (place / key).stat().st_size


def entries(place: Location) -> list[str]:
    """Names of what is directly below `place`, in alphabetical order."""
    return place.entries() if isinstance(place, RemotePath) else sorted(os.listdir(place))


def array_folders(place: Location) -> list[str]:
    """Names of what is directly below `place` and may be an array, in alphabetical order."""
    if isinstance(place, RemotePath):
        return place.folders()
    return sorted(file.parent.name for file in place.glob("*/zarr.json"))


def each(place: Location, function: Callable[[K], V], items: Iterable[K]) -> list[V]:
    """`function` of each item, in order; at the same time where each is a journey."""
    items = list(items)
    if isinstance(place, Path) or len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(function, items))


def replace_file(place: Location, key: str, content: bytes) -> None:
    """Write the file `key` below `place` in one step, so that it is the old one or the new one, also after a kill."""
    if isinstance(place, RemotePath):
        (place / key).write_bytes(content)
        return
    path = place / key
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content)
        sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_branch(place, key)


def prefetch(place: Location, keys: Iterable[str]) -> None:
    """Read small files, relative to `place`, in one go where each would be a journey."""
    if isinstance(place, RemotePath):
        place.prefetch(keys)
