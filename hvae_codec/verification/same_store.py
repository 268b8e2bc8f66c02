"""A store that the driver has opened, opened again by processes that work on its row groups."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ..errors import StoreError, UnreachableError
from ..storage.location import Location, seen_from
from ..store.reader import Store

S = TypeVar("S", bound=Store)


@dataclass(frozen=True)
class StoreReference:
    """Where other processes find a store, and how they know that it is the same one; picklable and small."""

    folder: str  # in which the store has the name `path`
    path: Location
    fingerprint: str

    @classmethod
    def of(cls, store: Store) -> StoreReference:
        """Refer to a store that is open here."""
        return cls(os.getcwd(), store.path, store.metadata.fingerprint)

    def open(self, open_: Callable[[Location], S]) -> S:
        """Open it by `open_`; raises `StoreError` with the name of this machine if it is not here, or another one."""
        here, host = seen_from(self.folder, self.path), socket.gethostname()
        try:
            store = open_(here)
        except (StoreError, UnreachableError, OSError) as error:
            raise StoreError(f"the worker on {host} cannot read the store: {error}") from None
        if store.metadata.fingerprint != self.fingerprint:
            raise StoreError(
                f"the worker on {host} finds another store at {here}; if it was replaced meanwhile, run the command "
                "again, otherwise let workers see the same folder there"
            )
        return store
