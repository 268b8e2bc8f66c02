"""Images in one array: `.npy` or a zarr array, uint8 [N, H, W] or [N, H, W, C], read in slices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .containers import Container
from .pixels import fit, other_channels
from .splits import StatedParts
from .whole_zarr import WholeZarr

SAMPLED_IMAGES = 64  # images, evenly spaced, whose pixels go into an array's fingerprint


class ArrayContainer(Container):
    """Images of one array: a NumPy array, a memory map or a zarr array. Names are positions in eight digits."""

    numbered_names = True

    def __init__(
        self,
        path: Path,
        array: Any,
        labels: Sequence[str] = (),
        names: Sequence[str] = (),
        parts: StatedParts | None = None,
        *,
        size: int,
        channels: int,
    ) -> None:
        _check_array(path, array, channels)
        self.array = array
        names = names or tuple(f"{i:08d}" for i in range(array.shape[0]))
        labels = tuple(labels) or ("",) * len(names)
        raw_bytes = np.full(len(names), int(np.prod(array.shape[1:])), np.int64)
        super().__init__(path, names, labels, raw_bytes, size=size, channels=channels, parts=parts)

    def read(self, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Read slices of the array, in runs of consecutive positions."""
        raw = self._raw(positions)
        raw = raw[..., None] if raw.ndim == 3 else raw
        if raw.shape[3] != self.channels:
            raw = raw[..., : self.channels]
            self.alpha_dropped[positions] = True
        if raw.shape[1:3] == (self.size, self.size):
            return np.ascontiguousarray(raw.transpose(0, 3, 1, 2))
        self.resized[positions] = True
        fitted = [fit(pixels, self.size) for pixels in raw]
        return np.array(fitted, np.uint8).reshape(-1, self.channels, self.size, self.size)

    def content(self, positions: NDArray[np.int64]) -> bytes:
        """Give the images' shape, the dtype, and the raw bytes of up to 64 images."""
        sample = np.unique(np.linspace(0, len(positions) - 1, SAMPLED_IMAGES).astype(int))
        return repr((self.array.shape[1:], "uint8")).encode() + self._raw(positions[sample]).tobytes()

    def _raw(self, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        out = np.empty((len(positions), *self.array.shape[1:]), np.uint8)
        order = np.argsort(positions, kind="stable")
        breaks = np.flatnonzero(np.diff(positions[order]) != 1) + 1
        for run in np.split(order, breaks) if len(order) else []:
            start = int(positions[run[0]])
            stop = start + len(run)
            with readable(f"cannot read images {start} to {stop - 1} of {self.path}"):
                out[run] = self.array[start:stop]
        return out


@contextmanager
def readable(failure: str) -> Iterator[None]:
    """Turn any error of numpy, zarr or zlib (they have many types) into a `DataError` that begins with `failure`."""
    try:
        yield
    except (MemoryError, DataError):
        raise
    except Exception as error:
        raise DataError(f"{failure} ({error}); write the array again") from None


def is_array(path: Path) -> bool:
    """Whether `path` is an array by its ending, or by what lies in the folder."""
    if path.is_dir():
        return any((path / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup"))
    return path.suffix.lower() == ".npy"


def open_array(path: Path, *, size: int, channels: int) -> ArrayContainer:
    """Open the `.npy` or zarr array at `path`; raises `DataError` if it does not hold uint8 images."""
    with readable(f"{path} cannot be read as an array"):
        array = _open_zarr(path) if path.is_dir() else np.load(path, mmap_mode="r", allow_pickle=False)
    return ArrayContainer(path, array, size=size, channels=channels)


def _check_array(path: Path, array: Any, channels: int) -> None:
    shape, dtype = tuple(array.shape), array.dtype
    if dtype != np.uint8:
        raise DataError(f"{path} holds {dtype}; convert the images to uint8, 0 to 255")
    if len(shape) not in (2, 3, 4):
        raise DataError(f"{path} has shape {shape}; it must be [N, H, W] or [N, H, W, C]")
    if 0 in shape:
        raise DataError(f"{path} has shape {shape}, so there is no image in it; give an array with at least one image")
    if len(shape) == 2:
        raise DataError(f"{path} has {_one_image(shape, '[H, W]')}; give [N, H, W], for instance array[None]")
    if len(shape) == 3 and shape[2] <= 4:
        raise DataError(f"{path} has {_one_image(shape, '[H, W, C]')}; give [N, H, W, C], for instance array[None]")
    if len(shape) == 3 and shape[0] == channels > 1:
        transposed = "give [N, H, W, C], for instance array.transpose(1, 2, 0)[None]"
        raise DataError(f"{path} has {_one_image(shape, '[C, H, W]')}; {transposed}")
    found = shape[3] if len(shape) == 4 else 1
    if found == channels or (found == 4 and channels == 3):
        return
    if len(shape) == 4 and shape[1] == channels:
        raise DataError(f"{path} has shape {shape}, which looks like [N, C, H, W]; transpose it to [N, H, W, C]")
    raise DataError(f"{path} of shape {shape} is {other_channels(found, channels)}, or convert the array")


def _one_image(shape: tuple[int, ...], axes: str) -> str:
    return f"shape {shape}, which looks like one image {axes}"


def _open_zarr(path: Path) -> Any:
    import zarr  # slow to import, and most sources are folders

    node = zarr.open(str(path), mode="r")
    if isinstance(node, zarr.Group):
        arrays = ", ".join(sorted(node.array_keys())) or "none"
        raise DataError(f"{path} is a zarr group with the arrays {arrays}; give the path of the array with the images")
    return WholeZarr(path, node)
