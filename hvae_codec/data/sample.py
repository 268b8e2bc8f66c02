"""A small data set, made without a network: patches of ten photographs of scikit-image and scikit-learn.

Of each photograph, a strip at the end of its longer side is held out; no training patch has a pixel of it.

    +--------------------------+-----+
    |  train, patches overlap  | val |
    +--------------------------+-----+

No two patches are equal, and of each photograph at most one is nearly flat (black around the retina, the night sky).
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError, UsageError
from ..progress import Progress
from ..storage.new_folder import new_folder

PHOTOGRAPHS = {
    "astronaut": "astronaut",
    "chelsea": "chelsea",
    "coffee": "coffee",
    "hubble": "hubble_deep_field",
    "ihc": "immunohistochemistry",
    "motorcycle": "stereo_motorcycle",
    "retina": "retina",
    "rocket": "rocket",
    "china": "china.jpg",
    "flower": "flower.jpg",
}
"""Class folder -> function of `skimage.data`, or file name for `sklearn.datasets.load_sample_image`."""

PATCHES = {"train": 7000, "val": 800}  # at most this many patches in all; photographs have their share by area

FLAT = 2.0  # a patch is nearly flat if the standard deviation of every colour is below this, in pixel levels

_MARKER = "sample-data.json"
_VERSION = 2  # of what is written for a size and a seed; the first had patches twice, and no version in its marker


class SampleData(NamedTuple):
    """Numbers of patches written."""

    train: int
    val: int


class Box(NamedTuple):
    """A square of a photograph, `side` pixels high and wide: one patch."""

    top: int
    left: int
    side: int


def write_sample_data(folder: Path, *, size: int = 32, seed: int = 0, progress: Progress | None = None) -> SampleData:
    """Write patches of `size` × `size` pixels as folder/train/<photograph>/NNNNN.png and folder/val/...

    About 7,000 and 800 at 32 pixels, fewer at large sizes, where photographs that are too small are left out; `seed`
    shifts which patches of the grid are taken. The folder appears when it is complete. One that already holds the
    same is left as it is; raises `DataError` if it holds anything else, and `UsageError` on an impossible size.
    """
    if size < 4 or seed < 0:
        raise UsageError(f"the size is {size} and the seed {seed}; the size must be at least 4 and the seed 0 or more")
    photographs = load_photographs()
    boxes = choose_patches(photographs, size, seed)
    counts = SampleData(**{split: sum(name.startswith(f"{split}/") for name in boxes) for split in PATCHES})
    marker = {"version": _VERSION, "size": size, "seed": seed, **counts._asdict()}
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        _check_finished(folder, marker, len(boxes))
        return counts
    if not any(counts):
        raise UsageError(f"the size is {size}, too large for every photograph; give 352 or less")
    try:
        with new_folder(folder) as partial:
            for done, (name, box) in enumerate(boxes.items(), 1):
                target = partial / name
                target.parent.mkdir(parents=True, exist_ok=True)
                photograph = photographs[target.parent.name]
                Image.fromarray(photograph[box.top : box.top + size, box.left : box.left + size]).save(target)
                if progress is not None:
                    progress(done, len(boxes))
            (partial / _MARKER).write_text(json.dumps(marker, indent=2) + "\n")
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"cannot write {folder} ({reason}); give a folder that can be written") from None
    return counts


def _check_finished(folder: Path, marker: Mapping[str, Any], patches: int) -> None:
    """Raise `DataError` if `folder` does not hold all patches of `marker`."""
    try:
        found = json.loads((folder / _MARKER).read_text())
    except (OSError, ValueError):
        found = None
    if found == marker and len(list(folder.glob("*/*/*.png"))) == patches:
        return
    problem = f"exists and is not finished sample data of size {marker['size']} and seed {marker['seed']}"
    if isinstance(found, dict) and "size" in found and "version" not in found:
        problem = "holds sample data of an earlier version, which has some patches twice but can be used as before"
    raise DataError(f"{folder} {problem}; remove it or give another folder")


def load_photographs() -> dict[str, NDArray[np.uint8]]:
    """Load the ten photographs by name, each uint8 [H, W, 3]; of the stereo motorcycle, the left image."""
    import skimage.data  # both are slow to import
    import sklearn.datasets

    photographs = {}
    for name, source in PHOTOGRAPHS.items():
        bundled = source.endswith(".jpg")
        try:
            loaded = sklearn.datasets.load_sample_image(source) if bundled else getattr(skimage.data, source)()
        except (ImportError, AttributeError, OSError) as error:
            package = f"the installed {'scikit-learn' if bundled else 'scikit-image'}"
            problem = f"the photograph {source} does not come with {package} ({error})"
            raise DataError(f"{problem}; install it from a wheel") from None
        photographs[name] = np.asarray(loaded[0] if isinstance(loaded, tuple) else loaded)
    return photographs


def choose_patches(photographs: Mapping[str, NDArray], size: int, seed: int = 0) -> dict[str, Box]:
    """Map file names (split/photograph/NNNNN.png) to patches: the grids, without repetitions, thinned to `PATCHES`."""
    phase, seen = np.random.default_rng(seed).random(), set[bytes]()
    chosen: dict[str, Box] = {}
    for split in ("val", "train"):  # held-out patches come first: one for training may not equal any of them
        grid = list(_new_boxes(photographs, split, size, seen))
        count = min(len(grid), PATCHES[split])
        numbers = {name: itertools.count() for name in photographs}
        for name, box in (grid[int((i + phase) * len(grid) / count)] for i in range(count)):
            chosen[f"{split}/{name}/{next(numbers[name]):05d}.png"] = box
    return chosen


def _new_boxes(
    photographs: Mapping[str, NDArray], split: str, size: int, seen: set[bytes]
) -> Iterable[tuple[str, Box]]:
    """Yield the grids of a split by photograph, without patches that `seen` has, nor its second nearly flat one."""
    for name, photograph in photographs.items():
        height, width, _ = photograph.shape
        for box in choose_boxes(height, width, split, size):
            pixels = photograph[box.top : box.top + size, box.left : box.left + size]
            keys = {hashlib.sha256(pixels.tobytes()).digest()}
            if pixels.std(axis=(0, 1)).max() < FLAT:
                keys.add(name.encode())
            if keys.isdisjoint(seen):
                yield name, box
            seen |= keys


def choose_boxes(height: int, width: int, split: str, size: int) -> list[Box]:
    """List the grid of one photograph in one split, by rows; neighbours are two thirds of their size apart.

    Empty if it is too small: a held-out strip one patch wide, or an eighth of it, may be a quarter of it at most.
    """
    longer = max(height, width)
    if size > min(height, width, longer // 4):
        return []
    rest = longer - max(round(longer / 8), size)  # of the longer side, without the strip
    own = range(rest) if split == "train" else range(rest, longer)
    rows, columns = (range(height), own) if width >= height else (own, range(width))
    stride = max(1, round(size * 2 / 3))
    tops, lefts = (range(side.start, side.stop - size + 1, stride) for side in (rows, columns))
    return [Box(top, left, size) for top in tops for left in lefts]
