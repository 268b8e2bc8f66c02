"""An object in a bucket as it was when it was looked at: what is read of it later is of that one, or is an error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .bucket import BucketLocation
from .translated import PreconditionFailedError, translated


class ReplacedError(Exception):
    """The object is another one than when it was looked at, or is gone."""


@dataclass(frozen=True)
class ObjectState:
    """Where an object is, and what tells it from others that had or will have its name."""

    location: BucketLocation
    size: int  # bytes
    tag: str  # its ETag, or when it was written if the server gives none

    @classmethod
    def of(cls, location: BucketLocation) -> ObjectState:
        """Ask for the state of the object at `location`; raises `FileNotFoundError` if there is none."""
        import obstore

        with translated(str(location)):
            meta = obstore.head(location.bucket.client, location.key)
        return cls(location, meta["size"], _tag(meta))

    def check(self) -> None:
        """Raise `ReplacedError` if there is another object now, or none."""
        try:
            current = ObjectState.of(self.location)
        except FileNotFoundError:
            raise ReplacedError from None
        if current != self:
            raise ReplacedError

    def read(self, start: int, stop: int) -> bytes:
        """Read the bytes from `start` to `stop`, fewer at the end; raises `ReplacedError` if they are of another one.

        Raises `UnreachableError` if the bucket does not answer.
        """
        import obstore

        if start >= min(stop, self.size):  # a server has no empty range
            return b""
        try:
            with translated(str(self.location)):
                found = obstore.get(self.location.bucket.client, self.location.key, options=self._options(start, stop))
                if (found.meta["size"], _tag(found.meta)) != (self.size, self.tag):  # of a server without conditions
                    raise ReplacedError
                return bytes(found.bytes())
        except (FileNotFoundError, PreconditionFailedError, ValueError):  # gone, another one, or too short
            raise ReplacedError from None

    def _options(self, start: int, stop: int) -> Any:
        # A weak ETag (W/"...") meets no condition; what comes back is looked at in any case.
        condition = {"if_match": self.tag} if self.tag.startswith('"') else {}
        return {"range": (start, min(stop, self.size)), **condition}


def _tag(meta: Any) -> str:
    return meta["e_tag"] or meta["last_modified"].isoformat()
