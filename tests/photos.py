"""Patches of photographs, as arrays and as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import skimage.data
from numpy.typing import NDArray
from PIL import Image

Patches = NDArray[np.uint8]


def cut(count: int, size: int = 16, channels: int = 3) -> Patches:
    """`count` different patches of two photographs, uint8 [count, channels, size, size]; a fourth channel is grey."""
    photographs = [skimage.data.astronaut(), skimage.data.coffee()]
    patches = []
    for i in range(count):
        pixels = photographs[i % 2]
        top, left = 37 * i % (pixels.shape[0] - size), 101 * i % (pixels.shape[1] - size)
        patches.append(pixels[top : top + size, left : left + size].transpose(2, 0, 1))
    colour = np.stack(patches)
    grey = colour.mean(axis=1, keepdims=True).astype(np.uint8)
    return np.ascontiguousarray(np.concatenate([grey] if channels == 1 else [colour, grey], axis=1)[:, :channels])


def save_png(path: Path, patch: Patches) -> None:
    """Write `patch`, uint8 [channels, height, width] in colour, to `path`; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(patch.transpose(1, 2, 0)).save(path)
