"""Errors of a process that cannot run tasks at all: they name its machine, and are not those of one item."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import EngineError, HvaeCodecError


@contextmanager
def taking_part() -> Iterator[None]:
    """Get ready for tasks in the context; its errors say which worker cannot take part.

    Raises them in their class, and an `OSError` as `EngineError`.
    """
    try:
        yield
    except HvaeCodecError as error:
        raise type(error)(_sentence(error)) from None
    except OSError as error:  # not of one item's images: those of all would fail
        raise EngineError(_sentence(error)) from None


def _sentence(error: Exception) -> str:
    return f"the worker on {socket.gethostname()} cannot take part: {error}"
