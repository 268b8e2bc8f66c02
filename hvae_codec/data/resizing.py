"""Crops and resizes: pixels of any size to the square that a model takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .preprocessing import Preprocessing

Planes = NDArray[np.uint8]
"""uint8 [C, H, W]."""

_AT_ONCE = 1024  # columns of an image that `_area` has as sums at once: large images would take 8 times their bytes


def fit(pixels: NDArray[np.uint8], size: int, how: Preprocessing) -> NDArray[np.uint8]:
    """Crop and resize pixels [H, W, C] to [C, size, size]; a view if nothing is to be done.

    `how.crop` must lie in the image, which `misfit` tells.
    """
    planes = pixels.transpose(2, 0, 1)
    if how.box is not None:
        left, top, width, height = how.box
        planes = planes[:, top : top + height, left : left + width]
    if planes.shape[1:] == (size, size):
        return planes
    if how.resize == "adm" and how.crop == "centre":
        return _centre(_scaled_like_adm(planes, size), size)
    square = _centre(planes, min(planes.shape[1:])) if how.crop == "centre" else planes
    return np.ascontiguousarray(square) if square.shape[1:] == (size, size) else _RESIZERS[how.resize](square, size)


def misfit(height: int, width: int, size: int, how: Preprocessing) -> tuple[str, str]:
    """Say why an image of that size cannot be fitted, in a sentence's middle and as a reason; empty if it can."""
    shape = f"is {width} x {height} pixels"
    left, top, *sides = how.box or (0, 0, width, height)
    if left + sides[0] > width or top + sides[1] > height:
        return f"{shape}, and --crop {how.crop} reaches beyond it", "too small for --crop"
    if not how.upscale and min(sides) < size:
        part = f", of which {sides[0]} x {sides[1]} are taken" if how.box else ""
        return f"{shape}{part}, smaller than the model's {size} x {size}, and --no-upscale is given", "too small"
    return "", ""


def _centre(planes: Planes, side: int) -> Planes:
    height, width = planes.shape[1:]
    top, left = (height - side) // 2, (width - side) // 2
    return planes[:, top : top + side, left : left + side]


def _lanczos(planes: Planes, size: int) -> Planes:
    return _resized(planes, size, size, Image.Resampling.LANCZOS)


def _area(planes: Planes, size: int) -> Planes:
    """Average what each new pixel covers, parts of pixels by their share; exact, halves are rounded up."""
    height, width = planes.shape[1:]
    columns = np.array_split(planes, -(-width // _AT_ONCE), axis=2)
    rows = np.concatenate([_covered(part.swapaxes(1, 2), size) for part in columns], axis=1)
    sums = _covered(rows.swapaxes(1, 2), size)
    covered = height * width
    return ((2 * sums + covered) // (2 * covered)).astype(np.uint8)


def _covered(values: NDArray[Any], new: int) -> NDArray[np.int64]:
    """Sum what each of `new` pixels covers of the last axis, [..., old] to [..., new], in units of 1 / new pixel.

    The sum up to an edge is that of the pixels before it, and its share of the pixel that it cuts; in whole numbers,
    without the matrix product that several threads would wait for each other in.
    """
    old = values.shape[-1]
    cut, share = np.divmod(np.arange(new + 1) * old, new)
    before = np.zeros((*values.shape[:-1], old + 1), np.int64)
    np.cumsum(values, axis=-1, out=before[..., 1:])
    edges = before[..., cut] * new + share * values[..., np.minimum(cut, old - 1)]
    return np.diff(edges, axis=-1)


def _adm(planes: Planes, size: int) -> Planes:
    return _resized(_halved(planes, size), size, size, Image.Resampling.BICUBIC)


def _scaled_like_adm(planes: Planes, size: int) -> Planes:
    """Scale the whole image so that its shorter side is `size`, as guided diffusion does before it crops."""
    planes = _halved(planes, size)
    scale = size / min(planes.shape[1:])
    height, width = (round(side * scale) for side in planes.shape[1:])
    return _resized(planes, height, width, Image.Resampling.BICUBIC)


def _halved(planes: Planes, size: int) -> Planes:
    """Halve the image while it stays of `size` or larger."""
    while min(planes.shape[1:]) >= 2 * size:
        height, width = planes.shape[1:]
        planes = _resized(planes, height // 2, width // 2, Image.Resampling.BOX)
    return planes


def _resized(planes: Planes, height: int, width: int, filter_: Image.Resampling) -> Planes:
    # Pillow resizes each band of an RGB image on its own, so a plane at a time gives the same pixels for any C.
    images = (Image.fromarray(np.ascontiguousarray(plane)) for plane in planes)
    return np.stack([np.asarray(image.resize((width, height), filter_)) for image in images])


_RESIZERS: dict[str, Callable[[Planes, int], Planes]] = {"lanczos": _lanczos, "area": _area, "adm": _adm}
