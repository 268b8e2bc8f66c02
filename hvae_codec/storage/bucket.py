"""Stores in a bucket: what a reader or writer needs of s3:// and gs:// URLs, and their errors as one sentence each.

    RemotePath("s3://bucket/out.zarr") ── / "z16/zarr.json" ── read_bytes, exists, ...   like pathlib's
                                       └─ zarr_location() ──> where zarr finds the same objects

A bucket knows no folders, only objects whose names have slashes. Credentials, region and endpoint come from the
environment, as obstore reads it; docs/remote.md names the variables.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore, StorePath

from ..errors import UnreachableError, UsageError

if TYPE_CHECKING:
    from obstore.store import ObjectStore as Client

SCHEMES = ("s3", "gs")
RETRIES = 8
"""Of each request, after 0.1 s, 0.2 s, 0.4 s, ...; on dropped connections, timeouts and errors of the server."""
_GIVE_UP = timedelta(seconds=60)
_TIMEOUT = timedelta(seconds=60)
_CONNECT_TIMEOUT = timedelta(seconds=5)
AT_ONCE = 32
"""Requests under way at the same time where many objects are wanted."""


@dataclass(frozen=True, eq=False)
class Bucket:
    """A connection to a bucket, and the small objects that were read ahead of need."""

    url: str
    """Scheme and name, such as `s3://images`."""
    connection: Client
    process: int
    """The process that made it."""
    held: dict[str, bytes]
    """By key."""

    @classmethod
    def connect(cls, url: str) -> Bucket:
        """Sends nothing yet. Raises `UsageError` where obstore is missing, `UnreachableError` on wrong settings."""
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


@dataclass(frozen=True)
class RemotePath:
    """An object in a bucket, or all objects below it: as much of `pathlib.Path` as stores take.

    What is read may raise `UnreachableError`, and `FileNotFoundError` where there is no such object.
    """

    bucket: Bucket
    key: str
    """Name of the object, without slashes at its ends."""

    @classmethod
    def of(cls, url: str) -> RemotePath:
        """The path of a URL `s3://bucket/name`; `UsageError` where it is none."""
        match = re.fullmatch(rf"({'|'.join(SCHEMES)})://([^/?#]+)/+(.*[^/])/*", url)
        if not match:
            raise UsageError(f"{url} is no URL of a store; give one such as s3://bucket/out.zarr")
        scheme, bucket, key = match.groups()
        return cls(Bucket.connect(f"{scheme}://{bucket}"), str(PurePosixPath(key)))

    def __reduce__(self) -> tuple[Any, ...]:
        return RemotePath.of, (str(self),)  # another process makes a connection of its own

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __str__(self) -> str:
        return f"{self.bucket.url}/{self.key}"

    def __truediv__(self, key: str) -> RemotePath:
        return RemotePath(self.bucket, f"{self.key}/{key}")

    @property
    def name(self) -> str:
        """The part after the last slash."""
        return PurePosixPath(self.key).name

    def with_name(self, name: str) -> RemotePath:
        """The object or folder beside this one."""
        return RemotePath(self.bucket, str(PurePosixPath(self.key).with_name(name)))

    def absolute(self) -> RemotePath:
        """This path: a URL is never relative."""
        return self

    def exists(self) -> bool:
        """Whether there is an object of this name or below it."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        import obstore

        if self.key in self.bucket.held:
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

        if (held := self.bucket.held.get(self.key)) is not None:
            return held
        with translated(str(self)):
            return bytes(obstore.get(self.bucket.client, self.key).bytes())

    def read_text(self, encoding: str) -> str:
        """The whole object as text."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: bytes) -> None:
        """Write the object, at once whole, in place of one that is there; it is kept when this returns."""
        import obstore

        self.bucket.held.pop(self.key, None)
        with translated(str(self)):
            obstore.put(self.bucket.client, self.key, content)

    def create(self, content: bytes) -> bool:
        """Write the object unless it is there; whether it was not. Of several processes, one succeeds."""
        import obstore

        try:
            with translated(str(self)):
                obstore.put(self.bucket.client, self.key, content, mode="create", use_multipart=False)
        except FileExistsError:
            return False
        return True

    def copy_from(self, source: Path | RemotePath) -> None:
        """Write what `source` has, at once whole; the server does it where that is an object in the same bucket."""
        import obstore

        if isinstance(source, Path) or source.bucket.url != self.bucket.url:
            self.write_bytes(source.read_bytes())
            return
        self.bucket.held.pop(self.key, None)
        with translated(str(source)):
            obstore.copy(self.bucket.client, source.key, self.key)

    def delete(self, keys: Sequence[str]) -> None:
        """Remove the objects `keys` below this, those that are there."""
        import obstore

        for key in keys:
            self.bucket.held.pop((self / key).key, None)
        with translated(str(self)), contextlib.suppress(FileNotFoundError):
            obstore.delete(self.bucket.client, [(self / key).key for key in keys])

    def files(self) -> Iterator[tuple[str, int]]:
        """Every object below this, by its name from here on, and its bytes; 1,000 of them take a request."""
        import obstore

        with translated(str(self)):
            for batch in obstore.list(self.bucket.client, prefix=self.key):
                yield from ((entry["path"].removeprefix(f"{self.key}/"), entry["size"]) for entry in batch)

    def folders(self) -> list[str]:
        """Names directly below this that have objects below them; one request."""
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

    def read_ranges(self, starts: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
        """Bytes of the object from each of `starts` on; fewer where it ends before."""
        import obstore

        if not starts:
            return []
        with translated(str(self)):
            ranges = obstore.get_ranges(self.bucket.client, self.key, starts=starts, lengths=lengths)
            return [bytes(part) for part in ranges]

    def read_end(self, length: int) -> bytes:
        """The last bytes of the object; fewer where it is shorter."""
        import obstore

        with translated(str(self)):
            return bytes(obstore.get(self.bucket.client, self.key, options={"range": {"suffix": length}}).bytes())

    def prefetch(self, keys: Iterable[str]) -> None:
        """Read the small objects `keys` below this, many at once, and keep them; those that are missing are left out.

        One after the other they would take a round trip each.
        """
        paths = [self / key for key in keys]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for path, content in zip(paths, pool.map(RemotePath._read_if_there, paths), strict=True):
                if content is not None:
                    self.bucket.held[path.key] = content

    def _read_if_there(self) -> bytes | None:
        with contextlib.suppress(FileNotFoundError):
            return self.read_bytes()
        return None

    def zarr_location(self, *, read_only: bool = True) -> StorePath:
        """Where zarr finds what is below this."""
        return StorePath(ZarrObjects(self.bucket, read_only=read_only), self.key)


class ZarrObjects(ObjectStore):
    """zarr's view of a bucket: objects read ahead are not read again, and errors are ours."""

    def __init__(self, bucket: Bucket, *, read_only: bool = True) -> None:
        super().__init__(bucket.client, read_only=read_only)
        self.bucket = bucket

    def with_read_only(self, read_only: bool = False) -> ZarrObjects:
        """Of the same bucket."""
        return type(self)(self.bucket, read_only=read_only)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """An object or a range of it; None where there is none."""
        if byte_range is None and (held := self.bucket.held.get(key)) is not None:
            return prototype.buffer.from_bytes(held)
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
        self.bucket.held.pop(key, None)
        with translated(f"{self.bucket.url}/{key}"):
            await super().set(key, value)

    async def delete(self, key: str) -> None:
        """Remove an object, where it is there."""
        self.bucket.held.pop(key, None)
        with translated(f"{self.bucket.url}/{key}"):
            await super().delete(key)


# --- errors ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def translated(url: str) -> Iterator[None]:
    """Turns what obstore raises about `url` into an `UnreachableError`; lets `FileNotFoundError` through.

    `ValueError` where an object is too short for the bytes that were asked for, `FileExistsError` where one is there
    that was to be created.
    """
    try:
        yield
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error):
            raise UnreachableError(_sentence(url, str(error))) from error
        raise
    except Exception as error:
        # Not by its class: this must not import obstore where nothing was raised by it.
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
