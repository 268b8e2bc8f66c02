"""Chooses images for training and for validation, and finds their classes, from names or from what a container says."""

from __future__ import annotations

import functools
import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")
Split = Literal["train", "val", "test", "all"]

HELD_OUT = 10  # without val and test folders, one image in this many is held out, chosen by a hash of its name

_SPLIT_FOLDER = re.compile(
    r"(?:(?P<train>train(?:ing)?)|(?P<val>val(?:id(?:ation)?)?|dev|hold[-_]?out)|(?P<test>test(?:ing)?|eval(?:uation)?))"
    # As in val2017 and train_64x64, test1 and trainA, and train_set and val_images.
    r"(?:[-_]?(?:(?:19|20)\d\d|\d+x\d+|\d|(?-i:[AB])|set|data|images?))?",
    re.IGNORECASE,
)


@dataclass(frozen=True, eq=False)
class Splits:
    """What the images of a data set are for: indices into its names, int64, ascending."""

    train: NDArray[np.int64]  # empty if every image is in a val or test folder
    val: NDArray[np.int64]  # the held-out images; all images if none can be held out
    test: NDArray[np.int64]  # the images in test folders; if there is no val folder, those of `val`
    folders: Mapping[Part, Sequence[str]]  # what says so: folders such as "val/" and "*/valid/", or files and keys

    def indices(self, part: Part) -> NDArray[np.int64]:
        """Return the indices of one part."""
        return {"train": self.train, "val": self.val, "test": self.test}[part]

    def names(self, count: int) -> list[str]:
        """Name the part of each of the `count` images; "" if it is in none. Of two parts, the one held out counts.

        >>> Splits(np.array([0]), np.array([1, 2]), np.array([2]), {}).names(4)
        ['train', 'val', 'test', '']
        """
        names = [""] * count
        for part in ("train", "val", "test") if self.is_held_out else ("val", "train", "test"):
            for i in self.indices(part).tolist():
                names[i] = part
        return names

    @property
    def is_held_out(self) -> bool:
        """Whether training leaves out the images of `val`."""
        return not np.array_equal(self.train, self.val)


@dataclass(frozen=True, eq=False)
class StatedParts:
    """What a container itself says its images are for: it counts in place of the folders in their names."""

    numbers: NDArray[np.int8]  # position in `PARTS` of each image's part, int8 [N]; len(PARTS) if it is in none
    sources: Mapping[Part, Sequence[str]]  # what says so: a file such as "t10k-images-idx3-ubyte.gz", a key "x_test"

    def of(self, positions: NDArray[np.int64]) -> StatedParts:
        """Select the images at `positions`."""
        return StatedParts(self.numbers[positions], self.sources)

    def or_else(self, others: StatedParts) -> StatedParts:
        """Take the parts of `others` for the images that are in none."""
        unsaid = self.numbers == len(PARTS)
        numbers = np.where(unsaid, others.numbers, self.numbers)
        taken = {*others.numbers[unsaid].tolist()}
        sources = {
            part: [*self.sources[part], *(others.sources[part] if number in taken else ())]
            for number, part in enumerate(PARTS)
        }
        return StatedParts(numbers, sources)


def find_splits(names: Sequence[str], stated: StatedParts | None = None) -> Splits:
    """Find what each of the images `names` is for, from `stated` if a container says it, or else from split folders.

    Split folders are train, training | val, valid, validation, dev | test, testing, eval, evaluation in any case, also
    with a year or a size (val2017, train_64x64): at the top, or one level down if class folders or data sets have
    splits of their own. Of two in one name, the upper one counts. Nothing in a val or test folder is for training:

    - Held out is what is in val folders, or in test folders if there are none.
    - Beside these, images in train folders are for training, and those in no split folder for neither. If there are no
      train folders, everything in no split folder is for training.
    - Without val and test folders, about one in ten of all is held out, chosen by SHA-256 of the name, so that the
      choice is the same on every machine and does not change as images are added. If that would be none or all of them
      (a data set of one image), all images are in both.

    A class folder may be called train: one at the top with others beside it, none of them a val or test folder. So may
    the folder above all: one at the top with val or test folders in it, and none beside it.
    """
    return _split_by_parts(names, parts_in_names(names) if stated is None else stated)


def parts_in_names(names: Sequence[str]) -> StatedParts:
    """Find what the images `names` are for by the split folders in them; see `find_splits`."""
    tops = {_kind(folder) for folder in {name.partition("/")[0] if "/" in name else "" for name in names}}
    levels = (0, 1) if tops & {"val", "test"} else (1,) if "" in tops or _any_held_out_below(names) else (0, 1)
    shown = [_shown_folder(name.split("/", 2)[:-1], levels) for name in names]
    kinds = {folder: _kind(folder.split("/")[-2]) for folder in {*shown} - {""}}
    numbers = {folder: PARTS.index(kind) for folder, kind in kinds.items()}
    parts = np.fromiter((numbers.get(folder, len(PARTS)) for folder in shown), np.int8, len(shown))
    folders: dict[Part, list[str]] = {
        part: sorted(folder for folder, kind in kinds.items() if kind == part) for part in PARTS
    }
    return StatedParts(parts, folders)


def _split_by_parts(names: Sequence[str], stated: StatedParts) -> Splits:
    train, val, test, others = (np.flatnonzero(stated.numbers == number) for number in range(len(PARTS) + 1))
    if not len(val) and not len(test):
        return _split_by_hash(names)
    return Splits(train if len(train) else others, val if len(val) else test, test, stated.sources)


def _any_held_out_below(names: Sequence[str]) -> bool:
    """Whether there is a val or test folder one level down."""
    folders = {"/".join(name.split("/", 2)[1:-1]) for name in names}
    return any(_kind(folder) in ("val", "test") for folder in folders)


def _split_by_hash(names: Sequence[str]) -> Splits:
    held_out = np.array([is_held_out(name) for name in names], bool)
    train, val, everything = np.flatnonzero(~held_out), np.flatnonzero(held_out), np.arange(len(names))
    if not len(train) or not len(val):
        train, val = everything, everything
    return Splits(train, val, everything[:0], {})


def is_held_out(name: str) -> bool:
    """Whether a name belongs to the tenth held out for validation: SHA-256's first 8 bytes, modulo 10, are 0.

    >>> [is_held_out(f"{i:08d}") for i in range(25)].count(True)
    3
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % HELD_OUT == 0


def part_of_file(name: str) -> Part | None:
    """Find the split that the words in a file's or an array's name say, or the folders above it; None if they say none.

    A held-out word counts more than a training word, so that nothing which may be held out is trained on.

    >>> part_of_file("train-00000-of-00004.tar"), part_of_file("imagenet-val-000003.tar"), part_of_file("x_test")
    ('train', 'val', 'test')
    >>> part_of_file("train_val-0.tar"), part_of_file("test/000.tar"), part_of_file("facesTest-000.tar")
    ('val', 'test', 'test')
    >>> part_of_file("contest-000.tar"), part_of_file("trainA.tar")
    (None, 'train')
    """
    *folders, file = name.split("/")
    words = {_kind(text) for text in (*folders, *re.split(r"[^A-Za-z]+|(?<=[a-z])(?=[A-Z])", file))}
    return next((part for part in ("val", "test", "train") if part in words), None)


def label_of(name: str) -> str:
    """Find the class in an image's name: the first folder below a split folder, or above it if there is none.

    >>> label_of("train/astronaut/00012.png"), label_of("cats/1.png"), label_of("val/1.png"), label_of("1.png")
    ('astronaut', 'cats', '', '')
    >>> label_of("cats/Test/1.png"), label_of("mydata/train/cats/1.png"), label_of("train/test/1.png")
    ('cats', 'cats', 'test')
    """
    folders = name.split("/")[:-1]
    level = _split_level(folders)
    return next(iter([*folders[level + 1 :], *folders[: max(level, 0)]]), "")


def _shown_folder(folders: Sequence[str], levels: Sequence[int]) -> str:
    """Write the split folder among the folders of a name as "val/", or "*/val/" one level down; "" if there is none."""
    level = _split_level(folders, levels)
    return "" if level < 0 else sys.intern(f"{'*/' * level}{folders[level]}/")  # one text per folder, not per image


def _split_level(folders: Sequence[str], levels: Sequence[int] = (0, 1)) -> int:
    """Find at which of the `levels` the first split folder is; -1 if there is none."""
    return next((level for level in levels if level < len(folders) and _kind(folders[level])), -1)


@functools.lru_cache(maxsize=4096)  # images share their folders
def _kind(folder: str) -> str:
    match = _SPLIT_FOLDER.fullmatch(folder)
    return (match.lastgroup or "") if match else ""
