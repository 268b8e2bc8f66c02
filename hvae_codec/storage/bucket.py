"""Stores in a bucket: what a reader or writer needs of s3:// and gs:// URLs, and their errors as one sentence each.

    BucketLocation.of("s3://bucket/out.zarr") ── / "z16/zarr.json" ── read_bytes, exists, ...   like pathlib's
                                              └─ zarr_location() ──> where zarr finds the same objects

A bucket knows no folders, only objects whose names have slashes. Credentials, region and endpoint come from the
environment, as obstore reads it; docs/remote.md names the variables.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Self, TypeVar

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore, StorePath

from ..errors import UnreachableError, UsageError

if TYPE_CHECKING:
    from obstore.store import ObjectStore as Client

K = TypeVar("K")
V = TypeVar("V")

SCHEMES = ("s3", "gs")
RETRIES = 8
"""Of each request, after 0.1 s, 0.2 s, 0.4 s, ...; on dropped connections, timeouts and errors of the server."""
_GIVE_UP = timedelta(seconds=60)
_TIMEOUT = timedelta(seconds=60)
_CONNECT_TIMEOUT = timedelta(seconds=5)
AT_ONCE = 32  # requests under way at the same time if many objects are wanted


@dataclass(frozen=True, eq=False)
class Bucket:
    """A connection to a bucket, and the small objects that were prefetched."""

    url: str  # scheme and name, such as `s3://images`
    connection: Client
    process: int  # the process that made it
    prefetched: dict[str, bytes]  # by key

    @classmethod
    def connect(cls, url: str) -> Bucket:
        """Sends nothing yet. Raises `UsageError` if obstore is missing, `UnreachableError` on wrong settings."""
        try:
            import obstore.store
        except ImportError:
            raise UsageError(
                f"{url} takes the package obstore, which is not installed; pip install 'hvae-codec[remote]'"
            ) from None
        endpoint = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), "")
        with translated(url):
            client = obstore.store.from_url(
                url,
                retry_config={"max_retries": RETRIES, "retry_timeout": _GIVE_UP},
                client_options={
                    "timeout": _TIMEOUT,
                    "connect_timeout": _CONNECT_TIMEOUT,
                    # Who sets such an endpoint has said that it need not be encrypted.
                    "allow_http": endpoint.startswith("http://"),
                },
            )
        return cls(url, client, os.getpid(), {})

    @property
    def client(self) -> Client:
        """The connection; raises like `check_process`."""
        self.check_process()
        return self.connection

    def check_process(self) -> None:
        """Raise `UsageError` in a forked process, where the connection's threads are missing and nothing answers."""
        if self.process != os.getpid():
            raise UsageError(
                f"{self.url} cannot be read in a forked process; start processes with spawn, for a DataLoader "
                "multiprocessing_context='spawn'"
            )


_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


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
            raise UsageError(f"{url} is no URL of a store; give one such as s3://bucket/out.zarr")
        scheme, bucket, key = match.groups()
        return cls(Bucket.connect(f"{scheme}://{bucket}"), str(PurePosixPath(key)))

    def __reduce__(self) -> tuple[Any, ...]:
        return BucketLocation.of, (str(self),)  # another process makes a connection of its own

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

    def create(self, content: bytes) -> bool:
        """Write the object unless it is there; whether it was not. Of several processes, one succeeds."""
        import obstore

        try:
            with translated(str(self)):
                obstore.put(self.bucket.client, self.key, content, mode="create", use_multipart=False)
        except FileExistsError:
            return False
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
        return StorePath(ZarrObjects(self.bucket, read_only=read_only), self.key)


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


class ZarrObjects(ObjectStore):
    """zarr's view of a bucket: prefetched objects are not read again, and errors are ours."""

    def __init__(self, bucket: Bucket, *, read_only: bool = True) -> None:
        super().__init__(bucket.client, read_only=read_only)
        self.bucket = bucket

    def with_read_only(self, read_only: bool = False) -> ZarrObjects:
        """Of the same bucket."""
        return type(self)(self.bucket, read_only=read_only)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """An object or a range of it; None if there is none."""
        if byte_range is None and (content := self.bucket.prefetched.get(key)) is not None:
            return prototype.buffer.from_bytes(content)
        self.bucket.check_process()
        with translated(f"{self.bucket.url}/{key}"):
            return await super().get(key, prototype, byte_range)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Ranges of objects."""
        with translated(self.bucket.url):
            return await super().get_partial_values(prototype, key_ranges)

    async def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        with translated(f"{self.bucket.url}/{key}"):
            return await super().exists(key)

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object, at once whole."""
        self.bucket.prefetched.pop(key, None)
        with translated(f"{self.bucket.url}/{key}"):
            await super().set(key, value)

    async def delete(self, key: str) -> None:
        """Remove an object if it is there."""
        self.bucket.prefetched.pop(key, None)
        with translated(f"{self.bucket.url}/{key}"):
            await super().delete(key)


@contextlib.contextmanager
def translated(url: str) -> Iterator[None]:
    """Turns what obstore raises about `url` into an `UnreachableError`; lets `FileNotFoundError` through.

    `ValueError` if an object is too short for the bytes that were asked for, `FileExistsError` if one is there that
    was to be created.
    """
    try:
        yield
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error):
            raise UnreachableError(_sentence(url, str(error))) from error
        raise
    except Exception as error:
        # Not by its class: this must not import obstore if nothing was raised by it.
        if not type(error).__module__.startswith("obstore"):
            raise
        if re.search(r"InvalidRange| 416 |non-partial response", str(error)):
            raise ValueError("the object is too short") from error
        if type(error).__name__ == "AlreadyExistsError":
            raise FileExistsError(url) from error
        raise UnreachableError(_sentence(url, str(error))) from error


_CAUSES: Sequence[tuple[str, str]] = (
    ("NoSuchBucket", "there is no such bucket; check the URL, the region and the endpoint"),
    (
        r"169\.254\.169\.254|latest/(api/token|meta-data)|metadata\.google|token request|[Cc]redential",
        "there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, of gs:// "
        "GOOGLE_APPLICATION_CREDENTIALS, or of a public bucket AWS_SKIP_SIGNATURE=true",
    ),
    (
        r"InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|status code: 401",
        "the credentials are wrong or have expired; set others",
    ),
    (r"AccessDenied|status code: 403", "access is denied; check the credentials and what they allow"),
    (
        r"PermanentRedirect|AuthorizationHeaderMalformed|configured region",
        "the bucket is in another region; set AWS_REGION",
    ),
    (r"SlowDown|status code: (429|5\d\d)|[Ss]erver error", "the server refused it again and again; try later"),
    (r"HTTP error|error sending request|timed out", "there is no answer; check the network and the endpoint"),
)
"""What obstore's message holds, and what is said instead; the first one counts."""


def _sentence(url: str, message: str) -> str:
    first = message.partition("\n\nDebug source:")[0]
    for pattern, cause in _CAUSES:
        if re.search(pattern, first):
            return f"{url} cannot be reached: {cause}"
    return f"{url} cannot be reached: {' '.join(first.split())[:300]}"
