"""Finds split folders that may be classes: a folder `test` among folders that look like classes.

cats/1.png  dogs/2.png  test/3.png          odd: test/ is like the class folders beside it, and there is no train/
cats/1.png  dogs/2.png  test/cats/3.png     not odd: test/ has the classes in it
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

from .splits import Part, folders_above, kind_of_folder, levels_of_splits

SEVERAL = 2  # class folders beside a split folder; one may be anything


@dataclass(frozen=True)
class OddLayout:
    """A folder that was taken for a split, and may be a class."""

    folder: str  # such as "test/" or "animals/test/"
    part: Part  # what it was taken for
    images: int  # in it
    beside: Sequence[str]  # the folders beside it that look like classes, such as "cats/"


def find_odd_layouts(names: Sequence[str]) -> list[OddLayout]:
    """Find the split folders of the images `names` that are the only one among several folders like them.

    Like them means that images lie in each, and no folders. Only folders that `find_splits` takes for splits count, and
    a folder train at the top, whose images have no class.
    """
    direct = Counter(name.rpartition("/")[0] for name in names if "/" in name)  # images in each folder, not below it
    flat = direct.keys() - {above for folder in direct for above in _above(folder)}
    parents: dict[str, set[str]] = {}
    for parent, folder in _children(direct, sorted({0, *levels_of_splits(folders_above(names))})):
        parents.setdefault(parent, set()).add(folder)
    found = (_odd(parent, folders, direct, flat) for parent, folders in sorted(parents.items()))
    return [layout for layout in found if layout is not None]


def _children(folders: Counter[str], levels: Sequence[int]) -> Iterator[tuple[str, str]]:
    """Give the folders at which splits may begin, each with the path of the folder above it."""
    for path in folders:
        parts = path.split("/")
        for level in levels:
            if level < len(parts) and not any(map(kind_of_folder, parts[:level])):
                yield "/".join(parts[:level]), parts[level]


def _odd(parent: str, folders: Set[str], direct: Counter[str], flat: Set[str]) -> OddLayout | None:
    prefix = f"{parent}/" if parent else ""
    splits = [folder for folder in folders if kind_of_folder(folder)]
    part = kind_of_folder(splits[0]) if len(splits) == 1 else ""
    if not part or prefix + splits[0] not in flat:
        return None
    classes = sorted(folder for folder in folders if folder not in splits and prefix + folder in flat)
    if len(classes) < SEVERAL:
        return None
    folder = prefix + splits[0]
    return OddLayout(f"{folder}/", part, direct[folder], [f"{name}/" for name in classes])


def _above(folder: str) -> Iterator[str]:
    """Give all folders that a folder lies in."""
    end = folder.rfind("/")
    while end > 0:
        yield folder[:end]
        end = folder.rfind("/", 0, end)
