"""Locks of the store of PATH in a folder: files of the folder PATH.locks beside it; they vanish with their process.

writer    whoever writes all that is missing, alone or with processes that it sends row groups to
publish   for the moment in which the store gets its name
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import StoreError
from ..storage.locks import ProcessLock, remove_empty, waiting_lock


@contextmanager
def write_lock(path: Path) -> Iterator[None]:
    """Held while this process writes all that is missing of the store of `path`, however it ends.

    Raises `StoreError` if another process does, or if nothing can be written beside `path`.
    """
    lock = _writer(path)
    try:
        acquired = lock.acquire()
    except (FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise StoreError(f"{path} cannot be written ({error.strerror}); give another location") from None
    if not acquired:
        raise _taken(path)
    try:
        yield
    finally:
        lock.remove()
        remove_empty(lock_folder(path))


def check_unlocked(path: Path) -> None:
    """Raise `StoreError` if another process writes all that is missing of the store of `path`."""
    if _writer(path).is_taken():
        raise _taken(path)
    remove_empty(lock_folder(path))


@contextmanager
def publish_lock(path: Path) -> Iterator[None]:
    """Held for the moment in which one process gives a store the name `path`, or repairs that; others wait."""
    with waiting_lock(lock_folder(path) / "publish"):
        yield
    remove_empty(lock_folder(path))


def lock_folder(path: Path) -> Path:
    """Where the locks of the store of `path` are."""
    return path.with_name(path.name + ".locks")


def remove_locks(path: Path) -> None:
    """Remove what killed processes left, once the store is published; living ones keep their locks without files."""
    shutil.rmtree(lock_folder(path), ignore_errors=True)


def _writer(path: Path) -> ProcessLock:
    return ProcessLock(lock_folder(path) / "writer")


def _taken(path: Path) -> StoreError:
    return StoreError(f"{path} is being written by another process; wait for it or stop it")
