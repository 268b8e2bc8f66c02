"""A small data set, made without a network: patches of ten photographs of scikit-image and scikit-learn.

Of each photograph, a strip at the end of its longer side is held out; no training patch has a pixel of it.

    +--------------------------+-----+
    |  train, patches overlap  | val |
    +--------------------------+-----+
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

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

_MARKER = "sample-data.json"


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
    chosen = {split: choose_patches(photographs, split, size, seed) for split in PATCHES}
    counts = SampleData(**{split: len(patches) for split, patches in chosen.items()})
    marker = json.dumps({"size": size, "seed": seed, **counts._asdict()}, indent=2) + "\n"
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        if not _is_finished(folder, marker, sum(counts)):
            problem = f"exists and is not finished sample data of size {size} and seed {seed}"
            raise DataError(f"{folder} {problem}; remove it or give another folder")
        return counts
    if not any(counts):
        raise UsageError(f"the size is {size}, too large for every photograph; give 352 or less")
    try:
        with new_folder(folder) as partial:
            boxes = [item for patches in chosen.values() for item in patches.items()]
            for done, (name, box) in enumerate(boxes, 1):
                target = partial / name
                target.parent.mkdir(parents=True, exist_ok=True)
                photograph = photographs[target.parent.name]
                Image.fromarray(photograph[box.top : box.top + size, box.left : box.left + size]).save(target)
                if progress is not None:
                    progress(done, len(boxes))
            (partial / _MARKER).write_text(marker)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"cannot write {folder} ({reason}); give a folder that can be written") from None
    return counts


def _is_finished(folder: Path, marker: str, patches: int) -> bool:
    try:
        return (folder / _MARKER).read_text() == marker and len(list(folder.glob("*/*/*.png"))) == patches
    except (OSError, ValueError):
        return False


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


def choose_patches(photographs: Mapping[str, NDArray], split: str, size: int, seed: int = 0) -> dict[str, Box]:
    """Map file names (split/photograph/NNNNN.png) to patches: the grid of all photographs, thinned to `PATCHES`."""
    sides = {name: photograph.shape[:2] for name, photograph in photographs.items()}
    grid = [(name, box) for name, (height, width) in sides.items() for box in choose_boxes(height, width, split, size)]
    count, phase = PATCHES[split], np.random.default_rng(seed).random()
    if len(grid) > count:
        grid = [grid[int((i + phase) * len(grid) / count)] for i in range(count)]
    numbers = {name: itertools.count() for name in photographs}
    return {f"{split}/{name}/{next(numbers[name]):05d}.png": box for name, box in grid}


def choose_boxes(height: int, width: int, split: str, size: int) -> list[Box]:
    """List the grid of one photograph in one split, by rows; neighbours are three quarters of their size apart.

    Empty if it is too small: a held-out strip one patch wide, or an eighth of it, may be a quarter of it at most.
    """
    longer = max(height, width)
    if size > min(height, width, longer // 4):
        return []
    rest = longer - max(round(longer / 8), size)  # of the longer side, without the strip
    own = range(rest) if split == "train" else range(rest, longer)
    rows, columns = (range(height), own) if width >= height else (own, range(width))
    stride = max(1, round(size * 3 / 4))
    tops, lefts = (range(side.start, side.stop - size + 1, stride) for side in (rows, columns))
    return [Box(top, left, size) for top in tops for left in lefts]
