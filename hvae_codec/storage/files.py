"""Files and folders that survive a power cut, and a folder that takes another's place at once."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import uuid
from pathlib import Path

_HERE, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux's fcntl.h and fs.h."""


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders, and flushes them itself
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_branch(root: Path, key: str) -> None:
    """Flush the object `key` below `root`, and the folders between them, to the disk."""
    path = root / key
    sync(path)
    while path != root:
        path = path.parent
        sync(path)


def write_object(path: Path, data: bytes) -> None:
    """Write a file, and the folders above it, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        unfinished.write_bytes(data)
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def link_or_copy(source: Path, target: Path) -> None:
    """Give the file `source` a second name, or where the file system cannot, make a copy; leaves one that is there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileExistsError:  # linked before a kill
        return
    except FileNotFoundError:
        raise
    except OSError:  # no hard links here
        unfinished = target.with_name(target.name + ".partial")
        shutil.copyfile(source, unfinished)
        sync(unfinished)
        unfinished.replace(target)


def sync_tree(root: Path) -> None:
    """Flush all below `root`, and itself, to the disk."""
    for path in root.rglob("*"):
        sync(path)
    sync(root)


def exchange(one: Path, other: Path) -> bool:
    """Let two folders swap their names, so that at no moment either name is free.

    False, and nothing done, where the system or the file system cannot (all but Linux).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except AttributeError:  # an old C library
        return False
    return bool(renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)
