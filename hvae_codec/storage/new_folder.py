"""A folder of results that appears when it is whole.

new_folder ──> NAME.partial ── filled ── renamed ──> NAME

A kill leaves NAME.partial, and the next process that makes NAME removes it or goes on with it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import DataError
from .files import lock_file
from .locks import ProcessLock


@contextmanager
def new_folder(folder: Path, *, kept: bool = False) -> Iterator[Path]:
    """Give the folder to be filled, which becomes `folder` afterwards, or is removed on an error.

    If it is `kept`, it stays on an error, and the next call gives it as it is. Raises `DataError` if `folder` exists
    and is not empty, or if another process is making it.
    """
    folder = folder.absolute()  # "." itself cannot be replaced
    check_new(folder)
    lock = ProcessLock(lock_file(folder))
    if not lock.acquire():
        raise DataError(f"{folder} is being written by another process; wait for it or give another folder")
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        if not kept:
            shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(exist_ok=kept)
        yield partial
        os.replace(partial, folder)  # onto nothing, or onto an empty folder
    finally:
        if not kept:
            shutil.rmtree(partial, ignore_errors=True)
        lock.remove()


def check_new(folder: Path) -> None:
    """Raise `DataError` if `folder` exists and is not an empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} exists and is not empty; give another folder")
