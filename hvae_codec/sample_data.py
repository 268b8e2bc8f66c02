"""A small data set of real photographs, made without a network: patches of ten that come with scikit-image and
scikit-learn.

Of each photograph, a strip at the end of its longer side is held out; no training patch has a pixel of it.

    +--------------------------+-----+
    |  train, patches overlap  | val |
    +--------------------------+-----+
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import DataError, UsageError

T = TypeVar("T")

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

Split = Literal["train", "val"]

PATCHES: dict[Split, int] = {"train": 7000, "val": 800}
"""At most this many patches in all; photographs have their share by area."""

STRIDE = 3 / 4
"""Distance of neighbouring patches, as a share of their size."""

HELD_OUT = 1 / 8
"""Length of the held-out strip as a share of the longer side; more where a patch needs it."""

MARKER = "sample-data.json"


@dataclass(frozen=True)
class SampleData:
    """Numbers of patches written."""

    train: int
    val: int


@dataclass(frozen=True)
class Box:
    """A square of a photograph, `side` pixels high and wide: one patch."""

    top: int
    left: int
    side: int


@dataclass(frozen=True)
class Patch:
    """One patch: where it comes from and which split it is in."""

    split: Split
    photograph: str
    number: int
    """Counts the photograph's patches in this split, from 0."""
    box: Box

    @property
    def file_name(self) -> str:
        """split/photograph/NNNNN.png."""
        return f"{self.split}/{self.photograph}/{self.number:05d}.png"


@dataclass(frozen=True)
class Region:
    """A rectangle of a photograph, in pixels."""

    top: int
    left: int
    height: int
    width: int


def write_sample_data(
    folder: Path, *, size: int = 32, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> SampleData:
    """Write patches of `size` × `size` pixels as folder/train/<photograph>/NNNNN.png and folder/val/...

    About 7,000 and 800 at 32 pixels, fewer at large sizes, where photographs that are too small are left out; `seed`
    shifts which patches of the grid are taken. The folder appears when it is complete. One that already holds the
    same is left as it is; raises `DataError` where it holds anything else, and `UsageError` on an impossible size.
    """
    if size < 4 or seed < 0:
        raise UsageError(f"the size is {size} and the seed {seed}; the size must be at least 4 and the seed 0 or more")
    folder = Path(folder)
    if folder.exists() and (finished := _finished(folder, size, seed)):
        return finished
    partial = folder.absolute().with_name(f".{folder.absolute().name}.{os.getpid()}.partial")
    try:
        counts = _write(partial, size, seed, progress)
        os.replace(partial, folder)  # onto nothing, or onto an empty folder
    except OSError as error:
        raise DataError(
            f"cannot write {folder} ({error.strerror or error}); give a folder that can be written"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return counts


def _finished(folder: Path, size: int, seed: int) -> SampleData | None:
    """The counts of finished sample data of this size and seed, or None where `folder` is empty."""
    if folder.is_dir() and not any(folder.iterdir()):
        return None
    counts = {split: sum(1 for _ in folder.glob(f"{split}/*/*.png")) for split in PATCHES}
    found = SampleData(**counts)
    try:
        if json.loads((folder / MARKER).read_text()) == _marker(size, seed, found):
            return found
    except (OSError, ValueError):
        pass
    raise DataError(
        f"{folder} exists and is not finished sample data of size {size} and seed {seed}; remove it or give another "
        "folder"
    )


def _marker(size: int, seed: int, counts: SampleData) -> dict[str, Any]:
    return {"size": size, "seed": seed, **asdict(counts)}


def _write(folder: Path, size: int, seed: int, progress: Callable[[int, int], None] | None) -> SampleData:
    photographs = load_photographs()
    patches = [patch for split in PATCHES for patch in choose_patches(photographs, split, size, seed)]
    if not patches:
        raise UsageError(f"the size is {size}, too large for every photograph; give 352 or less")
    for done, patch in enumerate(patches, 1):
        target = folder / patch.file_name
        target.parent.mkdir(parents=True, exist_ok=True)
        cut_patch(photographs[patch.photograph], patch.box).save(target)
        if progress is not None:
            progress(done, len(patches))
    counts = SampleData(**{split: sum(patch.split == split for patch in patches) for split in PATCHES})
    (folder / MARKER).write_text(json.dumps(_marker(size, seed, counts), indent=2) + "\n")
    return counts


def load_photographs() -> dict[str, NDArray[np.uint8]]:
    """The ten photographs by name, each uint8 [H, W, 3]; of the stereo motorcycle, the left image.

    Raises `DataError` where the installed packages do not bring one.
    """
    return {name: _load_photograph(source) for name, source in PHOTOGRAPHS.items()}


def _load_photograph(source: str) -> NDArray[np.uint8]:
    import skimage.data  # both are slow to import
    import sklearn.datasets

    package = "scikit-learn" if source.endswith(".jpg") else "scikit-image"
    try:
        if source.endswith(".jpg"):
            loaded = sklearn.datasets.load_sample_image(source)
        else:
            loaded = getattr(skimage.data, source)()
    except (ImportError, AttributeError, OSError) as error:
        raise DataError(
            f"the photograph {source} does not come with the installed {package} ({error}); install it from a wheel"
        ) from None
    return np.asarray(loaded[0] if isinstance(loaded, tuple) else loaded)


# --- where the patches are -------------------------------------------------------------------------------------------


def choose_patches(photographs: Mapping[str, NDArray[np.uint8]], split: Split, size: int, seed: int = 0) -> list[Patch]:
    """The patches of one split, photograph by photograph ([H, W, 3] each), from a grid thinned to `PATCHES`."""
    grids = [
        (name, box)
        for name, photograph in photographs.items()
        for box in choose_boxes(photograph.shape[0], photograph.shape[1], split, size)
    ]
    phase = np.random.default_rng(seed).random()
    taken = dict.fromkeys(photographs, 0)
    patches = []
    for name, box in thin(grids, PATCHES[split], phase):
        patches.append(Patch(split, name, taken[name], box))
        taken[name] += 1
    return patches


def choose_boxes(height: int, width: int, split: Split, size: int) -> list[Box]:
    """The grid of one photograph in one split, by rows.

    None where it is too small: a held-out strip one patch wide may be a quarter of it at most.
    """
    if size > min(height, width, max(height, width) // 4):
        return []
    return list(grid(split_regions(height, width, size)[split], size, max(1, round(size * STRIDE))))


def split_regions(height: int, width: int, side: int) -> dict[Split, Region]:
    """The two parts of a photograph; the held-out strip is at least `side` pixels wide."""
    strip = max(round(max(height, width) * HELD_OUT), side)
    if width >= height:
        rest = width - strip
        return {"train": Region(0, 0, height, rest), "val": Region(0, rest, height, strip)}
    rest = height - strip
    return {"train": Region(0, 0, rest, width), "val": Region(rest, 0, strip, width)}


def grid(region: Region, side: int, stride: int) -> Iterator[Box]:
    """Boxes on a regular grid that lie wholly inside `region`, by rows."""
    for top in range(region.top, region.top + region.height - side + 1, stride):
        for left in range(region.left, region.left + region.width - side + 1, stride):
            yield Box(top, left, side)


def thin(items: list[T], count: int, phase: float) -> list[T]:
    """Every n-th item, so that at most `count` are left; `phase` in [0, 1) says where to begin.

    >>> thin(list(range(10)), 4, 0.5)
    [1, 3, 6, 8]
    """
    if len(items) <= count:
        return items
    return [items[int((i + phase) * len(items) / count)] for i in range(count)]


def cut_patch(photograph: NDArray[np.uint8], box: Box) -> Image.Image:
    """The pixels of one patch."""
    return Image.fromarray(photograph[box.top : box.top + box.side, box.left : box.left + box.side])
