"""Images in one array: `.npy` or a zarr array, uint8 [N, H, W] or [N, H, W, C], read in slices.

With `depth` 8 in its preprocessing, also uint16.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..storage.location import AnyPath
from ..texts.classes import ClassTexts
from ..texts.numbered import NumberedTexts
from ..texts.sequence import Texts
from .chosen_images import portion_of, runs
from .containers import Container
from .depth import to_8_bits
from .heads import ImageHead, head_of_pixels
from .own_folders import STORE_ATTRIBUTE
from .pixels import as_channels, fit, other_channels
from .preprocessing import Preprocessing
from .resizing import misfit
from .splits import StatedParts
from .unchanged_map import unchanged
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
        names: Texts | None = None,
        parts: StatedParts | None = None,
        *,
        size: int,
        channels: int,
    ) -> None:
        _check_shape(path, array, channels)
        self.array = array
        names = NumberedTexts("", array.shape[0]) if names is None else names
        classes = ClassTexts.of(labels) if labels else ClassTexts.same("", len(names))
        raw_bytes = np.full(len(names), int(np.prod(array.shape[1:])), np.int64)
        super().__init__(path, names, classes, raw_bytes, size=size, channels=channels, parts=parts)

    def preprocess(self, how: Preprocessing) -> None:
        """Let `how` be done to the images; raises `DataError` if the model cannot take them then."""
        super().preprocess(how)
        _check_dtype(self.path, self.array, how)
        _check_channels(self.path, self.array, self.channels, how)
        height, width = self.array.shape[1:3]
        problem, _ = misfit(height, width, self.size, how)
        if problem:
            raise DataError(f"each image in {self.path} {problem}; give another array")

    def read(self, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Read slices of the array, in runs of consecutive positions."""
        found = self._raw(positions)
        self.seen.checksums[positions] = [zlib.crc32(image.data) for image in found]
        self.seen.is_checked[positions] = True
        raw = self._of_model(found, positions)
        self.seen.resized[positions] = raw.shape[1:3] != (self.size, self.size)
        if self.preprocessing.box is None and raw.shape[1:3] == (self.size, self.size):
            return np.ascontiguousarray(raw.transpose(0, 3, 1, 2))
        fitted = [fit(pixels, self.size, self.preprocessing) for pixels in raw]
        return np.array(fitted, np.uint8).reshape(-1, self.channels, self.size, self.size)

    def _of_model(self, raw: NDArray[Any], positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Make raw images uint8 [B, H, W, channels], and note what that took of those at `positions`."""
        raw = raw[..., None] if raw.ndim == 3 else raw
        if raw.dtype != np.uint8:
            raw = to_8_bits(raw)
            self.seen.depth_reduced[positions] = True
        found = raw.shape[3]
        if found == self.channels:
            return raw
        self.seen.alpha_dropped[positions] = found == 4
        self.seen.recoloured[positions] = min(found, 3) != self.channels
        if self.channels == 3 < found and self.preprocessing.background_colour is None:
            return raw[..., :3]
        images = [as_channels(pixels, self.channels, self.preprocessing) for pixels in raw]
        return np.array(images, np.uint8).reshape(-1, *raw.shape[1:3], self.channels)

    def checksum(self, position: int) -> int:
        """Read the image's elements."""
        return self.note_checksum(position, zlib.crc32(self._raw(np.array([position], np.int64)).data))

    def head(self, position: int) -> ImageHead:
        """Describe the image at `position`, which is like all others."""
        _, height, width, *channels = self.array.shape
        return head_of_pixels((height, width, *(channels or [1])), self.array.dtype)

    def content(self, positions: NDArray[np.int64]) -> bytes:
        """Give the images' shape, the dtype, and the raw bytes of up to 64 images."""
        sample = np.unique(np.linspace(0, len(positions) - 1, SAMPLED_IMAGES).astype(int))
        return repr((self.array.shape[1:], str(self.array.dtype))).encode() + self._raw(positions[sample]).tobytes()

    def _raw(self, positions: NDArray[np.int64]) -> NDArray[Any]:
        out = np.empty((len(positions), *self.array.shape[1:]), self.array.dtype)
        numbers = self.numbers_of(positions)
        for run in runs(positions, numbers):
            start, (first, last) = int(positions[run[0]]), numbers[run[[0, -1]]].tolist()
            with readable(f"cannot read images {first} to {last} of {self.path}"):
                out[run] = self.array[start : start + len(run)]
        return out

    def _narrow(self, positions: NDArray[np.int64]) -> None:
        super()._narrow(positions)
        self.array = portion_of(self.array, positions)


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
        mapped = None if path.is_dir() else np.load(path, mmap_mode="r", allow_pickle=False)
        array = _open_zarr(path) if mapped is None else unchanged(mapped, path)
    return ArrayContainer(path, array, size=size, channels=channels)


def _check_dtype(path: AnyPath, array: Any, how: Preprocessing) -> None:
    if array.dtype == np.uint16 and how.depth != 8:
        raise DataError(f"{path} holds uint16; give --depth 8, or convert the images to uint8, 0 to 255")
    if array.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{path} holds {array.dtype}; convert the images to uint8, 0 to 255")


def _check_channels(path: AnyPath, array: Any, channels: int, how: Preprocessing) -> None:
    shape = tuple(array.shape)
    found = shape[3] if len(shape) == 4 else 1
    if found == channels or (found == 4 and channels == 3):
        return
    if how.colour != "auto" and found in (1, 3, 4) and channels in (1, 3):
        return
    if len(shape) == 4 and shape[1] == channels:
        raise DataError(f"{path} has shape {shape}, which looks like [N, C, H, W]; transpose it to [N, H, W, C]")
    raise DataError(f"{path} of shape {shape} is {other_channels(found, channels)}")


def _check_shape(path: Path, array: Any, channels: int) -> None:
    shape = tuple(array.shape)
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


def _one_image(shape: tuple[int, ...], axes: str) -> str:
    return f"shape {shape}, which looks like one image {axes}"


def _open_zarr(path: Path) -> Any:
    import zarr  # slow to import, and most sources are folders

    node = zarr.open(str(path.absolute()), mode="r")
    if isinstance(node, zarr.Group):
        if STORE_ATTRIBUTE in node.attrs:
            raise DataError(
                f"{path} is a store of latents that encode wrote; give the images themselves or, if they are gone, "
                "decode it first (hvae-codec decode)"
            )
        arrays = ", ".join(sorted(node.array_keys())) or "none"
        raise DataError(f"{path} is a zarr group with the arrays {arrays}; give the path of the array with the images")
    return WholeZarr(path, node)
