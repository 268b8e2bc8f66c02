"""Whether this process can write row groups of a store for another one, which has begun the work."""

from __future__ import annotations

from ..engine.handshake import package_version
from ..errors import EngineError
from ..store.unfinished_reference import UnfinishedReference


def check_here(store: UnfinishedReference, version: str) -> None:
    """Raise `EngineError` if this package is not of `version`, or if the unfinished store is not seen from here."""
    if (own := package_version()) != version:
        raise EngineError(f"it has version {own} of hvae-codec, and {version} began the work; install the same in both")
    if not store.is_here:
        raise EngineError(
            f"it does not see the unfinished store {store.unfinished}; give a folder that all workers have in "
            "common, by the same absolute path, or a URL"
        )
