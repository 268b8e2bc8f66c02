"""Tells folders with results of this package, whose pictures are no images of a data set that they lie in."""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable

_MARKS = (
    {b"zarr.json"},  # a store, or another zarr array or group
    {b".zarray"},
    {b".zgroup"},
    {b"config.json", b"model.safetensors"},  # a run
    {b"cutoffs.json", b"cutoffs.csv"},  # an analysis
    {b"bench.json", b"bench.csv"},  # a comparison with image codecs
)
"""Files that together tell what a folder holds."""

STORE_ATTRIBUTE = "hvae_codec"
"""Of a zarr group that is a store."""

OWN_FILES = frozenset({b"sample-data.json", b"dataset.json"})
"""Files among images that this package wrote or reads, and that are not counted as others."""

_ENDINGS = (b".partial", b".replaced")
"""Of folders that were being written, or replaced, when a command was killed."""


def is_own_folder(name: bytes, files: Iterable[bytes]) -> bool:
    """Whether a folder, by its name and those of its files, holds a run, a store or an analysis, or a part of one.

    >>> is_own_folder(b"a", [b"config.json", b"model.safetensors"]), is_own_folder(b"cats", [b"config.json", b"1.png"])
    (True, False)
    """
    found = set().union(*_MARKS).intersection(files)
    return name.endswith(_ENDINGS) or any(marks <= found for marks in _MARKS)


def count_endings(names: Iterable[str]) -> dict[str, int]:
    """Count the files of an archive that are not read by their endings, but for those that this package reads or wrote.

    >>> count_endings(["a/1.HEIC", "a/2.heic", "README", "dataset.json"])
    {'.heic': 2, '': 1}
    """
    own = {name.decode() for name in OWN_FILES}
    others = (name for name in names if posixpath.basename(name) not in own)
    return dict(Counter(posixpath.splitext(name.lower())[1] for name in others))


def own_folders_among(names: Iterable[str]) -> list[str]:
    """Find the folders in the names of an archive's files that hold results, sorted; one at the top does not count.

    >>> own_folders_among(["runs/a/config.json", "runs/a/model.safetensors", "runs/a/1.png", "cats/1.png"])
    ['runs/a']
    """
    marks = {mark.decode() for mark in set().union(*_MARKS)}
    found: defaultdict[str, set[bytes]] = defaultdict(set)
    for name in names:
        folder, _, file = name.rpartition("/")
        found[folder].update([file.encode()] if file in marks else [])
    folders = {above for folder in found for above in _with_above(folder)}
    own = [folder for folder in folders if is_own_folder(folder.encode(), found.get(folder, ()))]
    return sorted(folder for folder in own if not any(folder.startswith(f"{other}/") for other in own))


def _with_above(folder: str) -> list[str]:
    parts = folder.split("/") if folder else []
    return ["/".join(parts[: i + 1]) for i in range(len(parts))]
