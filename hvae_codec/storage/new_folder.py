"""A folder of results that appears when it is whole.

new_folder ──> NAME.partial, with a marker ── filled ── renamed ──> NAME ── marker removed

A kill leaves NAME.partial. The next process that makes NAME goes on with it, if its job is the same, or begins anew. A
folder of that name without the marker is somebody else's, and is never touched.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ..errors import DataError
from .files import lock_file
from .locks import ProcessLock

MARKER = ".hvae-codec.json"  # the job that fills a folder


@contextmanager
def new_folder(folder: Path, job: Mapping[str, str] | None = None) -> Iterator[Path]:
    """Give the folder to be filled, which becomes `folder` afterwards.

    It is empty, but for what the same `job` left. On an error it stays if there is a job, and is removed if not.
    Raises `DataError` if `folder` exists and is not empty, if another process is making it, or if its name is taken.
    """
    given, folder = folder, Path(os.path.realpath(folder))  # neither "." nor a link can be replaced
    lock = ProcessLock(lock_file(folder))
    if not lock.acquire():
        raise DataError(f"{given} is being written by another process; wait for it or give another folder")
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        finish_folder(folder, job)
        check_new(given)
        _claim(partial, job)
        yield partial
        if os.name == "nt" and folder.exists():
            folder.rmdir()  # empty; Windows has no folder take its name
        os.replace(partial, folder)  # onto nothing, or onto an empty folder
        (folder / MARKER).unlink()  # not before: a folder without it is not known
    except BaseException:
        if job is None and (partial / MARKER).exists():
            discard(partial)
        raise
    finally:
        lock.remove()


def check_new(folder: Path) -> None:
    """Raise `DataError` if `folder` exists and is not an empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} exists and is not empty; give another folder")


def check_above(path: Path) -> None:
    """Raise `DataError` if a folder that `path` is to lie in is a file; those that are missing can be made."""
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise DataError(f"{path} cannot be written: {above} is a file; give another name")


def finish_folder(folder: Path, job: Mapping[str, str] | None) -> bool:
    """Finish what a kill at the very end has left of `job`; whether there was that."""
    if _marked(folder) != _text(job):
        return False
    (folder / MARKER).unlink()
    return True


def empty(partial: Path) -> None:
    """Remove what is in a folder that is being filled, but for the marker: a kill leaves a folder that is known."""
    for path in partial.iterdir():
        if path.name != MARKER:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def discard(partial: Path) -> None:
    """Remove a folder that is being filled."""
    empty(partial)
    shutil.rmtree(partial)


def _claim(partial: Path, job: Mapping[str, str] | None) -> None:
    """Make `partial` the folder of `job`: what the same job left in it stays, what another left is removed."""
    partial.mkdir(exist_ok=True)
    marked = _marked(partial)
    if marked is None and any(partial.iterdir()):
        raise DataError(f"{partial} is in the way, and is no unfinished result; move it or give another folder")
    if job is None or marked != _text(job):
        empty(partial)
        (partial / MARKER).write_text(_text(job))


def _marked(folder: Path) -> str | None:
    marker = folder / MARKER
    return marker.read_text() if marker.is_file() else None


def _text(job: Mapping[str, str] | None) -> str:
    return json.dumps(job)
