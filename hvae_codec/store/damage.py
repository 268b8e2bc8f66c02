"""One thing that is wrong with a store, and how reading it failed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import UnreachableError, UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong with a store."""

    file: str  # where, relative to the store, such as `z16/c/3/0/0/0`
    problem: str  # what is wrong with it, to be read after the file's name: `is missing`
    images: Sequence[int] = ()  # the images that are lost or in doubt, ascending; none if no image's numbers are
    row_group: int | None = None  # the row group that must be encoded again; None if that would not repair it
    names: Sequence[str] = ()  # names of the first few of `images`, if they can be read


class UnreadableError(Exception):
    """Something could not be read; the message says why, to be read after the name of a file."""


def reading(read: Callable[..., T], *arguments: Any) -> T:
    """What `read(*arguments)` returns; `UnreadableError` if it raises anything.

    A changed byte surfaces wherever it is first made use of, in zarr, a codec, numpy or the file system, as any error.
    `UnreachableError` and `UsageError` go through: what does not answer, or is asked wrongly, may be whole.
    """
    try:
        return read(*arguments)
    except (UnreachableError, UsageError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        checksum = "checksum" in reason.lower()
        problem = "does not match its checksum" if checksum else f"cannot be read ({reason[:160]})"
        raise UnreadableError(problem) from error
