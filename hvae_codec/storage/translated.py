"""Errors of buckets as one sentence each."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence

from ..errors import UnreachableError


class AccessDeniedError(UnreachableError):
    """These credentials do not allow it; said of what is not there, too, to those who may not list the bucket."""


class PreconditionFailedError(Exception):
    """The object is another one than the request was for."""


@contextlib.contextmanager
def translated(url: str) -> Iterator[None]:
    """Turns what obstore raises about `url` into an `UnreachableError`; lets `FileNotFoundError` through.

    `ValueError` if an object is too short for the bytes that were asked for, `FileExistsError` if one is there that
    was to be created, `PreconditionFailedError` if it is not the one that the request was for.
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
        if type(error).__name__ == "PreconditionError":
            raise PreconditionFailedError(url) from error
        denied = type(error).__name__ == "PermissionDeniedError"
        raise (AccessDeniedError if denied else UnreachableError)(_sentence(url, str(error))) from error


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
