"""One number that knows an image: from two of them, how far apart the images are, to a factor.

    sketch = sum over all pixels of  sign(i) * level(i)        signs are +1 or -1, fixed, and look random

The difference of two sketches is a sum of as many terms as there are colour values, of random sign: its square is, on
average over signs, the sum of squared differences (Alon, Matias and Szegedy 1996, "The space complexity of
approximating the frequency moments", section 2.2). So rounding to another level here and there, as on another machine,
changes a sketch little, and another image changes it much; a checksum would tell neither from the other.
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np
from numpy.typing import NDArray

SKETCH = "sketch"  # the per-image array of a store that holds them


def sketch(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The sketch of each image, float32 [B], of uint8 [B, C, H, W].

    >>> sketch(np.full((2, 3, 4, 4), 10, np.uint8))
    array([40., 40.], dtype=float32)
    """
    flat = pixels.reshape(len(pixels), int(np.prod(pixels.shape[1:])))
    plus = _plus(flat.shape[1])
    sums = [2 * int(image[plus].sum(dtype=np.int64)) - int(image.sum(dtype=np.int64)) for image in flat]
    return np.array(sums, np.float32)


def rms_difference(one: NDArray[np.float32], other: NDArray[np.float32], dims: int) -> NDArray[np.float64]:
    """Root mean square difference of images with these sketches, [B], in levels, by estimate.

    That is |N(0, 1)| times the true one: a hint of one image; over many, the root of its mean square is near the truth.
    """
    return np.abs(one.astype(np.float64) - other) / np.sqrt(dims)


@functools.lru_cache(maxsize=4)
def _plus(dims: int) -> NDArray[np.bool_]:
    """Where signs are +1: the bits of SHAKE-256 of "hvae-codec", the highest of each byte first."""
    digest = np.frombuffer(hashlib.shake_256(b"hvae-codec").digest(-(-dims // 8)), np.uint8)
    return np.unpackbits(digest, count=dims).astype(bool)
