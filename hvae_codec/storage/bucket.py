"""Stores in a bucket: what a reader or writer needs of s3:// and gs:// URLs, and their errors as one sentence each.

    BucketLocation.of("s3://bucket/out.zarr") ── / "z16/zarr.json" ── read_bytes, exists, ...   like pathlib's
                                              └─ zarr_location() ──> where zarr finds the same objects

A bucket knows no folders, only objects whose names have slashes. Credentials, region and endpoint come from the
environment, as obstore reads it; docs/remote.md names the variables.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ..errors import UsageError
from .connection import Bucket
from .translated import translated

if TYPE_CHECKING:
    from zarr.storage import StorePath

K = TypeVar("K")
V = TypeVar("V")

SCHEMES = ("s3", "gs")
AT_ONCE = 32  # requests under way at the same time if many objects are wanted


@dataclass(frozen=True, eq=False)
class BucketLocation:
    """An object in a bucket, or all objects below it, with the methods of `FolderLocation`.

    What is read may raise `UnreachableError`, and `FileNotFoundError` if there is no such object.
    """

    bucket: Bucket
    key: str  # name of the object, without slashes at its ends

    @classmethod
    def of(cls, url: str) -> BucketLocation:
        """The location of a URL `s3://bucket/name`; `UsageError` if it is none."""
        match = re.fullmatch(rf"({'|'.join(SCHEMES)})://([^/?#]+)/+(.*[^/])/*", url)
        if not match:
            raise UsageError(
                f"{url} is no URL of an object; give one such as s3://bucket/out.zarr or s3://bucket/a.zip"
            )
        scheme, bucket, key = match.groups()
        return cls(Bucket.connect(f"{scheme}://{bucket}"), str(PurePosixPath(key)))

    def __reduce__(self) -> tuple[Any, ...]:
        return BucketLocation, (self.bucket, self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BucketLocation) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __str__(self) -> str:
        return f"{self.bucket.url}/{self.key}"

    def __truediv__(self, key: str) -> BucketLocation:
        return BucketLocation(self.bucket, f"{self.key}/{key}")

    @property
    def name(self) -> str:
        """The part after the last slash."""
        return PurePosixPath(self.key).name

    def with_name(self, name: str) -> BucketLocation:
        """The object or folder beside this one."""
        return BucketLocation(self.bucket, str(PurePosixPath(self.key).with_name(name)))

    def absolute(self) -> BucketLocation:
        """This: a URL is never relative."""
        return self

    @property
    def folder(self) -> None:
        """Not on this machine."""

    @property
    def uncached(self) -> BucketLocation:
        """The same, without what was prefetched: what is there now."""
        return BucketLocation(replace(self.bucket, prefetched={}), self.key)

    def exists(self) -> bool:
        """Whether there is an object of this name or below it."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        import obstore

        if self.key in self.bucket.prefetched:
            return True
        with translated(str(self)), contextlib.suppress(FileNotFoundError):
            obstore.head(self.bucket.client, self.key)
            return True
        return False

    def is_dir(self) -> bool:
        """Whether there are objects below it."""
        return next(iter(self.files()), None) is not None

    def read_bytes(self) -> bytes:
        """The whole object."""
        import obstore

        if (content := self.bucket.prefetched.get(self.key)) is not None:
            return content
        with translated(str(self)):
            return bytes(obstore.get(self.bucket.client, self.key).bytes())

    def write(self, key: str, content: bytes) -> None:
        """Write the object `key` below this, at once whole; it survives a power cut when this returns."""
        import obstore

        path = self / key
        self.bucket.prefetched.pop(path.key, None)
        with translated(str(path)):
            obstore.put(self.bucket.client, path.key, content)

    def create(self, key: str, content: bytes) -> bool:
        """Write the object `key` below this unless it is there; whether it was not. Of several processes, one succeeds.

        It survives a power cut when this returns.
        """
        import obstore

        path = self / key
        try:
            with translated(str(path)):
                obstore.put(self.bucket.client, path.key, content, mode="create", use_multipart=False)
        except FileExistsError:
            return False
        self.bucket.prefetched.pop(path.key, None)
        return True

    def copy_from(self, source: Path | BucketLocation, key: str) -> None:
        """Write what `source` has as the object `key` below this; within a bucket, the server does it."""
        import obstore

        if not isinstance(source, BucketLocation) or source.bucket.url != self.bucket.url:
            self.write(key, source.read_bytes())
            return
        path = self / key
        self.bucket.prefetched.pop(path.key, None)
        with translated(str(source)):
            obstore.copy(self.bucket.client, source.key, path.key)

    def drop_from_cache(self, key: str) -> None:
        """Do nothing: the objects of a store that is being written are in no cache of this machine."""

    def remove_partial_files(self) -> None:
        """Do nothing: objects are there whole or not at all."""

    def delete(self, keys: Sequence[str]) -> None:
        """Remove the objects `keys` below this, those that are there."""
        import obstore

        for key in keys:
            self.bucket.prefetched.pop((self / key).key, None)
        with translated(str(self)), contextlib.suppress(FileNotFoundError):
            obstore.delete(self.bucket.client, [(self / key).key for key in keys])

    def files(self) -> Iterator[tuple[str, int]]:
        """Every object below this, by its name from here on, and its bytes; 1,000 of them take a request."""
        import obstore

        with translated(str(self)):
            for batch in obstore.list(self.bucket.client, prefix=self.key):
                yield from ((entry["path"].removeprefix(f"{self.key}/"), entry["size"]) for entry in batch)

    def array_folders(self) -> list[str]:
        """Names directly below this that have objects below them, and may be arrays; one request."""
        return sorted(PurePosixPath(prefix).name for prefix in self._entries()["common_prefixes"])

    def entries(self) -> list[str]:
        """Names directly below this, of objects and of what has objects below; one request."""
        found = self._entries()
        names = [*found["common_prefixes"], *(entry["path"] for entry in found["objects"])]
        return sorted(PurePosixPath(name).name for name in names)

    def _entries(self) -> Any:
        import obstore

        with translated(str(self)):
            return obstore.list_with_delimiter(self.bucket.client, prefix=self.key)

    def prefetch(self, keys: Iterable[str]) -> None:
        """Read the small objects `keys` below this before they are needed; those that are missing are left out.

        One after the other they would take a round trip each.
        """
        paths = [self / key for key in keys]
        for path, content in zip(paths, self.map(BucketLocation._read_if_there, paths), strict=True):
            if content is not None:
                self.bucket.prefetched[path.key] = content

    def map(self, function: Callable[[K], V], items: Iterable[K]) -> Iterator[V]:
        """`function` of each item, in order; many are under way at the same time."""
        items = list(items)
        if len(items) < 2:
            yield from map(function, items)
            return
        with ThreadPoolExecutor(AT_ONCE) as pool:
            yield from pool.map(function, items)

    def contains(self, other: object) -> bool:
        """Whether `other` is below this."""
        return str(other).startswith(f"{self}/")

    def identify(self, key: str) -> tuple[Hashable, ...]:
        """The object's URL: whether it was replaced meanwhile is not asked."""
        return (f"{self}/{key}",)

    def open_ranges(self, key: str) -> _RangeObject:
        """The object `key`, to read parts of it."""
        return _RangeObject(self / key)

    def _read_if_there(self) -> bytes | None:
        with contextlib.suppress(FileNotFoundError):
            return self.read_bytes()
        return None

    def zarr_location(self, *, read_only: bool = True) -> StorePath:
        """Where zarr finds what is below this."""
        from .zarr_objects import zarr_location  # slow to import, and images take no zarr

        return zarr_location(self.bucket, self.key, read_only=read_only)


@dataclass(frozen=True)
class _RangeObject:
    """An object whose parts are read, each by a request."""

    path: BucketLocation

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def identity(self) -> tuple[Hashable, ...]:
        """See `BucketLocation.identify`."""
        return (str(self.path),)

    def read_end(self, length: int) -> bytes:
        """The last bytes of the object; fewer if it is shorter."""
        import obstore

        with translated(str(self.path)):
            found = obstore.get(self.path.bucket.client, self.path.key, options={"range": {"suffix": length}})
            return bytes(found.bytes())

    def read_ranges(self, starts: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
        """Bytes from each of `starts` on, those that stand close together by one request; fewer at the end."""
        import obstore

        if not starts:
            return []
        with translated(str(self.path)):
            ranges = obstore.get_ranges(self.path.bucket.client, self.path.key, starts=starts, lengths=lengths)
            return [bytes(part) for part in ranges]
