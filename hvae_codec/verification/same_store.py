"""A store that the driver has opened, opened again by a process that works on its row groups."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TypeVar

from ..errors import StoreError, UnreachableError
from ..storage.location import Location, seen_from
from ..store.reader import Store

S = TypeVar("S", bound=Store)


def open_same(open_: Callable[[Location], S], folder: str, location: Location, fingerprint: str) -> S:
    """Open the store at `location`, as a process names it whose working folder is `folder`.

    Raises `StoreError` with the name of this machine if it is not here, or if one of another fingerprint is.
    """
    here, host = seen_from(folder, location), socket.gethostname()
    try:
        store = open_(here)
    except (StoreError, UnreachableError, OSError) as error:
        raise StoreError(f"the worker on {host} cannot read the store: {error}") from None
    if store.metadata.fingerprint != fingerprint:
        raise StoreError(
            f"the worker on {host} finds another store at {here}; if it was replaced meanwhile, run the command again, "
            "otherwise let workers see the same folder there"
        )
    return store
