"""Drawn images on disk: one PNG grid, one array, or a folder of PNG files, written as they are drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..config import ModelConfig
from ..data.pixels import EXTENSIONS
from ..data.preprocessing import MAX_PIXELS
from ..errors import DataError, UsageError
from ..progress import Progress
from ..storage.files import replaced_atomically
from ..storage.new_folder import check_above, check_new, new_folder

GAP = 2  # white pixels between the images of a grid

Kind = Literal["grid", "array", "folder"]
Numbered = Iterable[tuple[int, NDArray[np.uint8]]]
"""Each image's number and pixels [H, W, C]."""


@dataclass(frozen=True)
class SampleTarget:
    """Where drawn images go, and as what; `sample_target` makes and checks one."""

    path: Path
    kind: Kind
    count: int  # images that will be written
    channels: int
    size: int
    overwrite: bool = False  # whether a grid or array that is there is replaced

    @property
    def grid_shape(self) -> tuple[int, int]:
        """Rows and columns of a grid, which is as near to square as it can be."""
        columns = math.ceil(math.sqrt(self.count))
        return math.ceil(self.count / columns), columns

    @property
    def grid_pixels(self) -> tuple[int, int]:
        """Height and width of a grid."""
        rows, columns = self.grid_shape
        return rows * (self.size + GAP) - GAP, columns * (self.size + GAP) - GAP


def sample_target(path: Path, count: int, config: ModelConfig, *, overwrite: bool = False) -> SampleTarget:
    """Read `path`: NAME.png is a grid, NAME.npy an array uint8 [N, H, W, C], anything else a folder of files.

    Raises `UsageError` if the name is that of another format, a grid would be too large to be opened again, or PNG
    cannot hold the channels; `DataError` if something is there already: a folder must be empty, and `overwrite`
    lets a grid or array be replaced.
    """
    suffix = path.suffix.lower()
    if suffix in {*EXTENSIONS, ".npz", ".zarr"} - {".png"}:
        raise UsageError(f"{path} cannot be written; give a name ending in .png (a grid), .npy (an array), or a folder")
    kind: Kind = "grid" if suffix == ".png" else "array" if suffix == ".npy" else "folder"
    target = SampleTarget(path, kind, count, config.channels, config.image_size, overwrite)
    if kind != "array" and config.channels not in (1, 3):
        what = f"PNG files hold 1 or 3 channels, this model's images have {config.channels}"
        raise UsageError(f"{what}; give a name ending in .npy")
    if kind == "grid" and math.prod(target.grid_pixels) > MAX_PIXELS:
        what = f"a grid of {count:,} images has more than {MAX_PIXELS:,} pixels"
        raise UsageError(f"{what}; give fewer images, or a folder for single files")
    _check_free(target)
    return target


def _check_free(target: SampleTarget) -> None:
    path = target.path
    check_above(path)
    if target.kind == "folder":
        check_new(path)
    elif path.is_dir():
        raise DataError(f"{path} is a folder; give another name")
    elif path.exists() and not target.overwrite:
        raise DataError(f"{path} exists; give another name or pass --overwrite")


def write_samples(target: SampleTarget, batches: Iterable[NDArray[np.uint8]], progress: Progress | None = None) -> None:
    """Write the images of `batches` (uint8 [B, C, H, W]) to `target`; it appears when it is whole.

    Files are called 000000.png, 000001.png, ...: an image has the same name however many are drawn. Only a grid is
    in memory as a whole.
    """
    write = {"grid": _write_grid, "array": _write_array, "folder": _write_folder}[target.kind]
    target.path.absolute().parent.mkdir(parents=True, exist_ok=True)
    write(target, _counted(target, batches, progress))


def _counted(target: SampleTarget, batches: Iterable[NDArray[np.uint8]], progress: Progress | None) -> Numbered:
    """Number the images; reports a batch when its images are written."""
    done = 0
    for batch in batches:
        yield from enumerate(np.ascontiguousarray(batch.transpose(0, 2, 3, 1)), done)
        done += len(batch)
        if progress is not None:
            progress(done, target.count)


def _write_grid(target: SampleTarget, images: Numbered) -> None:
    grid = np.full((*target.grid_pixels, target.channels), 255, dtype=np.uint8)
    for number, pixels in images:
        top, left = (index * (target.size + GAP) for index in divmod(number, target.grid_shape[1]))
        grid[top : top + target.size, left : left + target.size] = pixels
    with replaced_atomically(target.path) as partial:
        _check_free(target)  # again: another process may have written it meanwhile
        _image(grid).save(partial, format="PNG")


def _write_array(target: SampleTarget, images: Numbered) -> None:
    shape = (target.count, target.size, target.size, target.channels)
    with replaced_atomically(target.path) as partial, open(partial, "wb") as file:
        _check_free(target)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for _, pixels in images:
            file.write(pixels.data)


def _write_folder(target: SampleTarget, images: Numbered) -> None:
    with new_folder(target.path) as folder:
        for number, pixels in images:
            _image(pixels).save(folder / f"{number:06d}.png")


def _image(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
