"""Lists a folder if no image lies in it or below it: beside images, the files of another container are not meant."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from .pixels import EXTENSIONS


def names_in_imageless(folder: Path, is_wanted: Callable[[str], bool]) -> list[str]:
    """List the names in `folder` that are wanted; none if there is an image in or below it, or if it cannot be listed.

    Hidden ones are left out.
    """
    names = [name for name in _names(folder) if is_wanted(name)]
    return names if names and not has_image_below(folder) else []


def has_image_below(folder: Path) -> bool:
    """Whether an image lies in `folder` or below it, or a link to a folder, which may lead to images."""
    for above, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        linked = any(os.path.islink(os.path.join(above, name)) for name in folders)
        if linked or any(file.lower().endswith(EXTENSIONS) and not file.startswith(".") for file in files):
            return True
    return False


def _names(folder: Path) -> list[str]:
    """List what lies in `folder`, hidden ones left out; none at the first image, as there may be a million."""
    names: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.name.lower().endswith(EXTENSIONS):
                    return []
                names.append(entry.name)
    except OSError:  # opening it as images says so
        return []
    return sorted(names)
