"""Files and folders that survive a kill and a power cut, and a folder that takes another's name at once.

write_atomically ──> NAME.partial ── synced ── renamed ──> NAME ── its folder synced

Of several processes that write one file, each waits for the one before it. What a kill leaves, the next one removes.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from .locks import waiting_lock

_HERE, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux's fcntl.h and fs.h."""


def write_atomically(
    path: Path, data: bytes, *, root: Path | None = None, unique: bool = False, name_first: bool = False
) -> None:
    """Write a file so that a reader, a kill or a power cut at any moment finds the old or the new content whole.

    See `replaced_atomically` for the options.
    """
    with replaced_atomically(path, root=root, unique=unique, name_first=name_first) as partial:
        partial.write_bytes(data)


def create_atomically(path: Path, data: bytes, *, root: Path) -> bool:
    """Write a file unless it is there, whole at any moment; whether it was not. Of several processes, one succeeds.

    Missing folders below `root` are created, and those between it and the file are synced. A kill leaves a file
    `*.partial` in `root`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = root / f"{path.name}.{uuid.uuid4().hex}.partial"
    try:
        partial.write_bytes(data)
        sync(partial)
        if not _take_free_name(partial, path):
            return False
    finally:
        partial.unlink(missing_ok=True)
    sync_folders(path.parent, root)
    return True


def _take_free_name(partial: Path, path: Path) -> bool:
    """Give the file `partial` the name `path` if nothing has it; whether it has it now."""
    try:
        os.link(partial, path)
    except FileExistsError:
        return False
    except FileNotFoundError:
        raise
    except OSError:  # no hard links here: two processes at the very same moment may both succeed
        if path.exists():
            return False
        partial.replace(path)
    return True


@contextmanager
def replaced_atomically(
    path: Path, *, root: Path | None = None, unique: bool = False, name_first: bool = False
) -> Iterator[Path]:
    """Give the name of a file to be written, which becomes `path` afterwards, or is removed on an error.

    With `root`, missing folders below it are created, and those between it and the file are synced too. `unique` is
    for many files that have a lock in common, whose owner removes what a kill has left, `*.partial` in `root`, where it
    is found without a look at every folder below: it saves the lock of each.
    `name_first` is for new files that nobody relies on before this returns: they are synced with their name, which
    takes half the time, and a power cut before that may leave a part of them.
    """
    if root is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    path.parent.stat()  # a lock would create it
    own = (root or path.parent) / f"{path.name}.{uuid.uuid4().hex}.partial"
    partial = own if unique else path.with_name(f"{path.name}.partial")
    with nullcontext() if unique else waiting_lock(lock_file(path)):
        try:
            partial.unlink(missing_ok=True)  # what a kill has left may have the rights of another
            yield partial
            if not name_first:
                sync(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        if name_first:
            sync(path)
        sync_folders(path.parent, root or path.parent)


def lock_file(path: Path) -> Path:
    """The file whose lock lets one process at a time write `path`."""
    return path.with_name(f".{path.name}.lock")


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders, and flushes them itself
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folders(folder: Path, root: Path) -> None:
    """Flush the entries of `folder`, which is in `root` or is it, and of the folders between them to the disk."""
    sync(folder)
    while folder != root:
        folder = folder.parent
        sync(folder)


def sync_tree(root: Path) -> None:
    """Flush all below `root`, and itself, to the disk."""
    for path in root.rglob("*"):
        sync(path)
    sync(root)


def link_or_copy(source: Path, target: Path) -> None:
    """Give the file `source` a second name, or make a copy if the file system has no links; leaves one that is there.

    The link is not synced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileExistsError:  # linked before a kill
        return
    except FileNotFoundError:
        raise
    except OSError:  # no hard links here
        with replaced_atomically(target) as partial:
            shutil.copyfile(source, partial)


def exchange(one: Path, other: Path) -> bool:
    """Let two folders swap their names, so that at no moment either name is free.

    False, and nothing done, if the system or the file system cannot (all but Linux).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except AttributeError:  # an old C library
        return False
    return bool(renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)
