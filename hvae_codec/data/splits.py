"""Chooses images for training and for validation, and finds their classes, from names alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

Split = Literal["train", "val", "all"]

HELD_OUT = 10  # without a val/ folder, one image in this many is held out for validation, chosen by a hash of its name


def split_indices(names: Sequence[str], which: Literal["train", "val"]) -> list[int]:
    """Find the indices in `names` of the images for training or for validation.

    - With images below both train/ and val/, those are the splits; other images belong to neither.
    - With only val/, everything outside it is for training.
    - Otherwise about one in ten of all is held out, chosen by SHA-256 of the name, so that the choice is the same on
      every machine and does not change as images are added. A class folder may be called train.
    A split that would be empty (a data set of one image) is all images instead.
    """
    tops = [name.partition("/")[0] if "/" in name else "" for name in names]
    in_train, in_val = ([i for i, top in enumerate(tops) if top == split] for split in ("train", "val"))
    if not in_val and len(in_train) < len(names):
        in_train = []  # a class folder that happens to be called train
    outside_val = in_train or [i for i, top in enumerate(tops) if top != "val"]
    if in_val and outside_val:
        return outside_val if which == "train" else in_val
    pool = in_train or list(range(len(names)))
    return [i for i in pool if is_held_out(names[i]) == (which == "val")] or pool


def is_held_out(name: str) -> bool:
    """Whether a name belongs to the tenth held out for validation: SHA-256's first 8 bytes, modulo 10, are 0.

    >>> [is_held_out(f"{i:08d}") for i in range(25)].count(True)
    3
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % HELD_OUT == 0


def label_of(name: str) -> str:
    """Find the class folder in an image's name.

    >>> label_of("train/astronaut/00012.png"), label_of("cats/1.png"), label_of("val/1.png"), label_of("1.png")
    ('astronaut', 'cats', '', '')
    """
    folders = name.split("/")[:-1]
    return next(iter(folders[1:] if folders and folders[0] in ("train", "val") else folders), "")
