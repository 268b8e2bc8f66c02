"""Lists a folder if no image lies in it, as what tells another container is not to be searched among a million."""

from __future__ import annotations

import os
from pathlib import Path

from .pixels import EXTENSIONS


def names_in_imageless(folder: Path) -> list[str]:
    """List the names of what lies in `folder`, hidden ones left out; none if it has an image, or cannot be listed."""
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
