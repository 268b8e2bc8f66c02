"""Names of the files that images are decoded to: those of the originals, with the ending .png, inside of one folder."""

from __future__ import annotations

import collections
import os
import re
from collections.abc import Sequence
from pathlib import PurePosixPath, PureWindowsPath

from ..errors import StoreError

NPY = "decode with --format npy"
"""What goes with any names."""


def png_names(names: Sequence[str]) -> list[PurePosixPath]:
    """Names with the ending .png; if two would be equal, it is added to the old ending instead.

    >>> [str(p) for p in png_names(["cats/1.jpg", "cats/2.jpg", "cats/2.png"])]
    ['cats/1.png', 'cats/2.jpg.png', 'cats/2.png']

    Raises `StoreError` if a name leads out of the folder, or two names stay equal.
    """
    paths = [_inside(name) for name in names]
    pngs = [path.with_suffix(".png") for path in paths]
    uses = collections.Counter(pngs)
    targets = [
        png if uses[png] == 1 or png == path else path.with_name(f"{path.name}.png")
        for path, png in zip(paths, pngs, strict=True)
    ]
    for target, count in collections.Counter(targets).items():
        if count > 1:
            raise StoreError(f"two images would be written to {target}; {NPY}")
    return targets


def _inside(name: str, *, windows: bool = os.name == "nt") -> PurePosixPath:
    """The path of `name` below a folder; a backslash, a drive and a device mean something on Windows alone."""
    path = PurePosixPath(name.replace("\\", "/") if windows else name)
    elsewhere = windows and (PureWindowsPath(name).anchor or any(map(_is_special_on_windows, path.parts)))
    if elsewhere or path.is_absolute() or not path.name or ".." in path.parts or "\0" in name:
        raise StoreError(f"the store names an image {name!r}, which leads out of the folder; {NPY}")
    return path


def _is_special_on_windows(part: str) -> bool:
    """Whether Windows takes `part` for a device, a stream of another file, or a name without the dots at its end."""
    device = re.fullmatch(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])( *\..*)?", part, re.IGNORECASE)
    return bool(device) or ":" in part or part != part.rstrip(". ")
