"""A connection to a bucket. Credentials, region and endpoint come from the environment, as obstore reads it."""

from __future__ import annotations

import functools
import os
from collections.abc import Set
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .translated import translated

if TYPE_CHECKING:
    from obstore.store import ObjectStore as Client

RETRIES = 8
"""Of each request, after 0.1 s, 0.2 s, 0.4 s, ...; on dropped connections, timeouts and errors of the server."""
_GIVE_UP = timedelta(seconds=60)
_TIMEOUT = timedelta(seconds=60)
_CONNECT_TIMEOUT = timedelta(seconds=5)


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
        return cls(url, _client(url, RETRIES, frozenset(os.environ.items()), os.getpid()), os.getpid(), {})

    def __reduce__(self) -> tuple[Any, ...]:
        return Bucket.connect, (self.url,)  # another process makes a connection of its own, one for all locations

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


@functools.lru_cache(maxsize=4)  # who reads a hundred portions of a data set meets the server once
def _client(url: str, retries: int, environment: Set[tuple[str, str]], process: int) -> Client:
    try:
        import obstore.store
    except ImportError:
        raise UsageError(
            f"{url} takes the package obstore, which is not installed; pip install 'hvae-codec[remote]'"
        ) from None
    endpoint = next((value for name in _ENDPOINTS if (value := dict(environment).get(name))), "")
    with translated(url):
        return obstore.store.from_url(
            url,
            retry_config={"max_retries": retries, "retry_timeout": _GIVE_UP},
            client_options={
                "timeout": _TIMEOUT,
                "connect_timeout": _CONNECT_TIMEOUT,
                # Who sets such an endpoint has said that it need not be encrypted.
                "allow_http": endpoint.startswith("http://"),
            },
        )


_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
