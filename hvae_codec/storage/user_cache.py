"""What was found out about a user's data and takes long to find out again: files in the user's cache.

    ~/.cache/hvae-codec/KIND/SHA-256 of the key.npz      or below XDG_CACHE_HOME, or LOCALAPPDATA

A file that is lost costs time only, so nothing here is an error: not a full disk, nor a user without a home. Whenever
one is written, those go that nobody has used for long, and the ones longest not used if all are too large.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from pathlib import Path

from .files import replaced_atomically

UNUSED_DAYS = 90  # after which a file is removed
LARGEST_CACHE = 2**30  # bytes of all files together; beyond it, those that were not used for longest are removed

_KINDS = ("indices", "checksums")
_ERRORS = (OSError, UnicodeError, RuntimeError)  # the last one if there is no home


def read_cached(kind: str, key: str) -> bytes:
    """Read what was written under `key`, and note that it was used; nothing if there is none."""
    with contextlib.suppress(*_ERRORS):
        file = _file(kind, key)
        content = file.read_bytes()
        with contextlib.suppress(OSError):  # of another user, or read-only
            os.utime(file)
        return content
    return b""


def write_cached(kind: str, key: str, content: bytes | memoryview) -> None:
    """Write `content` under `key`, whole or not at all, and remove what is not used any more."""
    with contextlib.suppress(*_ERRORS):
        file = _file(kind, key)
        file.parent.mkdir(parents=True, exist_ok=True)
        with replaced_atomically(file, unique=True) as partial:
            partial.write_bytes(content)
        _remove_unused(file)


def cache_folder() -> Path:
    """Find the folder of this package in the user's cache; raises `RuntimeError` if the user has no home."""
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "hvae-codec"


def _file(kind: str, key: str) -> Path:
    assert kind in _KINDS  # what is not listed there is never removed
    return cache_folder() / kind / f"{hashlib.sha256(key.encode(errors='surrogateescape')).hexdigest()}.npz"


def _remove_unused(newest: Path) -> None:
    """Remove files that were not used for long, and the least recently used of too many; never `newest`."""
    total, oldest = newest.stat().st_size, time.time() - UNUSED_DAYS * 86400
    for used, size, file in sorted(_others(newest), reverse=True):
        total += size
        if used < oldest or total > LARGEST_CACHE:
            total -= size
            with contextlib.suppress(OSError):  # another process was faster
                file.unlink()


def _others(newest: Path) -> list[tuple[float, int, Path]]:
    """List when each of the other files was used last, its bytes and itself; also what killed writers have left."""
    found = []
    for kind in _KINDS:
        for file in (cache_folder() / kind).glob("*.*"):
            with contextlib.suppress(OSError):
                status = file.stat()
                found += [(status.st_mtime, status.st_size, file)] if file != newest else []
    return found
