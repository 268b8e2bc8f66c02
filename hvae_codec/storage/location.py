"""Where a store is: in a folder, or in a bucket. Both have the same objects under the same names.

"out.zarr", Path("out.zarr"), "file:///data/out.zarr"   FolderLocation, a pathlib.Path
"s3://bucket/out.zarr", "gs://bucket/out.zarr"          BucketLocation
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePath, PurePosixPath
from typing import TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ..errors import UsageError
from .bucket import SCHEMES, BucketLocation
from .folder import FolderLocation

Location = FolderLocation | BucketLocation
LocationLike = str | Path | BucketLocation
"""What names a location, see `location_of`."""
AnyPath = Path | BucketLocation
"""Where images are: a path on this machine, or a location in a bucket."""
K = TypeVar("K")
V = TypeVar("V")

UNFINISHED = "unfinished.json"  # in a bucket, what becomes a store's `zarr.json` when the store is whole


def location_of(text: LocationLike) -> Location:
    """The folder, or the location in a bucket, that `text` names.

    >>> location_of("file:///data/out.zarr").as_posix()
    '/data/out.zarr'

    Raises `UsageError` if a URL is of an unknown kind or torn, or if the package for it is missing.
    """
    if isinstance(text, BucketLocation):
        return text
    url = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", str(text))  # two letters at least: c:// is a drive
    return _of_url(str(text), url[1]) if url and not isinstance(text, Path) else _folder(str(text))


def real_path(path: AnyPath) -> PurePath:
    """A path without links, to compare with others; of a location in a bucket, one of the URL's parts."""
    return PurePosixPath(str(path)) if isinstance(path, BucketLocation) else path.resolve()


def seen_from(folder: str, location: Location) -> Location:
    """Give a location that was named in the working folder `folder` the name that it has in this process's."""
    return location if location.folder is None or os.getcwd() == folder else FolderLocation(Path(folder) / location)


def _of_url(url: str, scheme: str) -> Location:
    if scheme.lower() == "file":
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost"):
            raise UsageError(f"{url} is on another machine; give a path, or a URL such as file:///data/out.zarr")
        return FolderLocation(url2pathname(parts.path))
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in (*SCHEMES, "file"))
        raise UsageError(f"{url} is a URL of an unknown kind; give a path, or one of {known}")
    return BucketLocation.of(url)


def _folder(text: str) -> FolderLocation:
    """The folder `text`, which has a name: others stand beside it."""
    scheme, slash, rest = text.partition(":/")
    if slash and scheme.lower() in (*SCHEMES, "file"):  # what is left of a URL that went through a Path
        raise UsageError(f"{text} is no URL: it has one slash where two must be; give {scheme}://{rest}, as text")
    path = FolderLocation(text)
    if path.name in ("", ".."):
        path = path.resolve()
    if not path.name:
        raise UsageError(f"{text} is the root of a file system, not a store; give a folder in it")
    return path


def each(location: Location, function: Callable[[K], V], items: Iterable[K]) -> list[V]:
    """`function` of each item, in order; at the same time if each is a journey."""
    return list(location.map(function, items))
