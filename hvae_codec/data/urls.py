"""Images at URLs, in a bucket: a zip, tars or Parquet files, whose pieces are read where they lie.

s3://bucket/x.zip      s3://bucket/x-{000..127}.tar      s3://bucket/folder, with tars or Parquet files below it
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from ..errors import DataError
from ..storage.bucket import SCHEMES, BucketLocation
from ..storage.location import AnyPath, location_of
from .containers import Container
from .file_sets import expanded, has_braces
from .foreign import refuse_name
from .member_names import is_hidden
from .parquet import parquet_in
from .pixels import EXTENSIONS
from .tars import compressed_sentence, is_named_compressed_tar, tars_in
from .zips import open_zip

_SETS: Mapping[str, Callable[..., Container]] = {".tar": tars_in, ".parquet": parquet_in}
"""Kinds of files of which a URL can name several, by their ending; of two in one folder, the first counts."""

_LOCAL_KINDS = {
    "a NumPy array": re.compile(r".*\.np[yz]", re.IGNORECASE),
    "a zarr array or group": re.compile(r".*\.zarr|zarr\.json|\.zarray|\.zgroup", re.IGNORECASE),
    "a file of MNIST's kind (IDX)": re.compile(r".*[-.]idx\d-ubyte(\.gz)?"),
    "CIFAR-10 or CIFAR-100": re.compile(r"cifar-100?-(python|binary)(\.tar\.gz)?|(data_batch_\d|test_batch)(\.bin)?"),
}
"""What is read on this machine alone, by the names of its files."""

_GIVE = "give a .zip, a .tar, tars as 'x-{000..127}.tar', Parquet files, or a folder of tars or of Parquet files"


def data_path(text: str | os.PathLike[str] | BucketLocation) -> AnyPath:
    """Find what `text` names: a path, or a location in a bucket if it is a URL; file:// is a path.

    Raises `UsageError` if it is a URL of an unknown kind, or one that lost a slash, and if obstore is missing.
    """
    if isinstance(text, BucketLocation):
        return text
    path, url = Path(text), re.match("([A-Za-z][A-Za-z0-9+.-]+):/", str(text))
    if url is None or (path.exists() and "://" not in str(text)):
        return path
    if url[1].lower() not in (*SCHEMES, "file") and "://" not in str(text):
        return path  # a folder called so, that is not there
    return location_of(os.fspath(text))


def open_url(location: BucketLocation, *, size: int, channels: int, **column: str) -> Container:
    """Open the images at `location`, those in a `column` if it has any.

    Raises `DataError` if there is nothing, or something that is not read from a bucket; `UnreachableError` if the
    bucket does not answer.
    """
    name, ending = location.name, PurePosixPath(location.name).suffix.lower()
    _refuse_local_kinds(location, name)
    if ending == ".zip" and not has_braces(location.key):
        return open_zip(location, size=size, channels=channels)
    if ending in _SETS:
        return _SETS[ending](location, _objects(location), size=size, channels=channels, **column)
    if has_braces(location.key):
        raise DataError(f"{location} is a range of files of another kind; {_GIVE}")
    return _open_folder(location, size=size, channels=channels, **column)


def has_columns_at(location: BucketLocation) -> bool:
    """Whether images at `location` may be in one of several columns: whether these are Parquet files."""
    ending = PurePosixPath(location.name).suffix.lower()
    if ending in (".zip", *_SETS):
        return ending == ".parquet"
    names = [name.lower() for name in _listed(location)]
    return next((kind == ".parquet" for kind in _SETS if any(name.endswith(kind) for name in names)), False)


def _refuse_local_kinds(location: BucketLocation, name: str) -> None:
    """Raise `DataError` if a name, that of `location` or of an object below it, tells that it is not read here."""
    refuse_name(location, name)
    kind = next((kind for kind, names in _LOCAL_KINDS.items() if names.fullmatch(name)), None)
    if kind:
        raise DataError(f"{location} is {kind}, which is not read from a URL; download it, and give its path")
    if is_named_compressed_tar(name):
        raise DataError(compressed_sentence(location))


def _objects(location: BucketLocation) -> dict[str, BucketLocation]:
    """Find the objects that a URL stands for, by the names that they have in it."""
    keys = expanded(location.key)  # itself if it has no braces
    above = os.path.commonpath([PurePosixPath(key).parent for key in keys])
    return {PurePosixPath(key).relative_to(above).as_posix(): BucketLocation(location.bucket, key) for key in keys}


def _open_folder(location: BucketLocation, *, size: int, channels: int, **column: str) -> Container:
    names = _listed(location)
    for ending, opener in _SETS.items():
        if found := sorted(name for name in names if name.lower().endswith(ending)):
            objects = {name: location / name for name in found}
            return opener(location, objects, size=size, channels=channels, **column)
    for name in names:
        _refuse_local_kinds(location, PurePosixPath(name).name)
    if zips := [name for name in names if name.lower().endswith(".zip")]:
        raise DataError(f"{location} has {len(zips):,} zips; give one of them, such as {location / zips[0]}")
    if names or location.is_file():
        raise DataError(f"{location} is not a folder of tars or of Parquet files, or another container; {_GIVE}")
    raise DataError(f"there is no {location}; check the URL, or {_GIVE}")


def _listed(location: BucketLocation) -> list[str]:
    """List the objects below `location` that are not hidden; raises `DataError` at the first that is an image."""
    names = []
    for name, _ in location.files():
        if is_hidden(name):
            continue
        if name.lower().endswith(EXTENSIONS):
            raise DataError(_single_images(location, name))
        names.append(name)
    return names


def _single_images(location: BucketLocation, name: str) -> str:
    problem = f"{location} holds single image files, such as {name}, and each would take a request"
    return f"{problem}; make a zip of the folder (zip -r -0 images.zip .), and give that at a URL"
