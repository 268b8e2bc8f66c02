"""Measures images encoded and decoded at each cutoff: quality, bytes, and a few of them to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..config import CHUNK_BYTES, ROW_GROUP_SIZE
from ..data.sources import ImageSource
from ..encode.closed_loop import encode_and_decode
from ..encode.coder import LatentCoder
from ..model.bottom_up import Activations
from ..store.arrays import chunk_length, compressed_bytes
from ..store.narrowing import fits
from ..store.reader import Stored
from .quality import mean_squared_error, psnr, ssim

SHEET_IMAGES = 10


@dataclass(frozen=True)
class Reconstruction:
    """Images encoded and decoded at one cutoff."""

    psnr: float  # of all images together, dB
    ssim: float  # mean over images
    bytes_per_image: float  # compressed latents; a store's metadata and names come on top
    examples: NDArray[np.uint8]  # the images to look at, uint8 [n, C, H, W]
    distortion: NDArray[np.float64]  # -log2 p(image | decoded z) of each image, bits/dim, [images]


class Compared(NamedTuple):
    """Consecutive images encoded and decoded with several coders."""

    quality: NDArray[np.float64]  # mean squared error and SSIM of each image, [coders, 2, images]
    bytes: list[int]  # compressed latents of all of them, by coder
    examples: NDArray[np.uint8]  # images to look at: originals, then those of each coder, [1 + coders, n, C, H, W]
    distortion: NDArray[np.float64]  # -log2 p(image | decoded z), bits/dim, [coders, images]


class ReconstructionMeter:
    """Encodes and decodes images with several coders of one model, batch by batch; a context, as it has a thread.

    images: how many there will be
    shown: the numbers of those to look at, if they are among these
    sizes: what adds up the bytes of each coder
    """

    def __init__(
        self, coders: Sequence[LatentCoder], images: int, shown: Sequence[int], sizes: Sequence[SizeMeter]
    ) -> None:
        self.coders, self._sizes = coders, sizes
        self._quality = np.zeros((len(coders), 2, images))
        self._distortion = np.zeros((len(coders), images))
        self._shown = [number for number in shown if 0 <= number < images]
        config = coders[0].model.config
        shape = (1 + len(coders), len(self._shown), config.channels, config.image_size, config.image_size)
        self._examples = np.zeros(shape, np.uint8)
        self._pool = ThreadPoolExecutor(1, "compare images")
        self._comparing: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def add(self, activations: Activations, images: Tensor, first: int) -> None:
        """Encode and decode uint8 `images` [B, C, H, W], the first of which is number `first`."""
        seen = self.coders[0].model.likelihood.quantised(images).cpu().numpy()
        self._wait()
        self._copy_examples(0, seen, first)
        for number, trip in enumerate(encode_and_decode(self.coders, activations, images)):
            decoded = trip.pixels.cpu().numpy()
            self._sizes[number].add(trip.stored)
            self._distortion[number, first : first + len(seen)] = trip.distortion
            self._comparing.append(self._pool.submit(self._compare, number, seen, decoded, first))
            self._copy_examples(1 + number, decoded, first)

    def _compare(self, number: int, seen: NDArray[np.uint8], decoded: NDArray[np.uint8], first: int) -> None:
        """Measure the quality of a coder's images; takes Python, so another thread does it while the next is run."""
        quality = (mean_squared_error(seen, decoded), ssim(seen, decoded))
        self._quality[number, :, first : first + len(seen)] = quality

    def _wait(self) -> None:
        """Wait until the images so far are compared."""
        for comparing in self._comparing:
            comparing.result()
        self._comparing.clear()

    def _copy_examples(self, row: int, images: NDArray[np.uint8], first: int) -> None:
        for column, index in enumerate(self._shown):
            if first <= index < first + len(images):
                self._examples[row, column] = images[index - first]

    def compared(self) -> Compared:
        """Return what was measured, once all images were added."""
        self._wait()
        sizes = [meter.total_bytes() for meter in self._sizes]
        return Compared(self._quality, sizes, self._examples, self._distortion)


def reconstructions(parts: Sequence[Compared]) -> tuple[NDArray[np.uint8], list[Reconstruction]]:
    """Join parts in order: the examples' originals, uint8 [n, C, H, W], and each coder's figures."""
    quality = np.concatenate([part.quality for part in parts], axis=2)
    originals, *examples = np.concatenate([part.examples for part in parts], axis=1)
    distortion = np.concatenate([part.distortion for part in parts], axis=1)
    sizes = [sum(each) / quality.shape[2] for each in zip(*(part.bytes for part in parts), strict=True)]
    return originals, [
        Reconstruction(psnr(mse), float(own_ssim.mean()), size, shown, bits)
        for (mse, own_ssim), size, shown, bits in zip(quality, sizes, examples, distortion, strict=True)
    ]


def example_indices(source: ImageSource) -> list[int]:
    """Choose the images to show: the middle one of each class if there are several, else evenly spaced ones."""
    classes: dict[str, list[int]] = {}
    for index, label in enumerate(source.labels):
        classes.setdefault(label, []).append(index)
    middles = [indices[len(indices) // 2] for indices in classes.values()]
    candidates = middles if len(middles) > 1 else list(range(len(source)))
    spaced = np.linspace(0, len(candidates) - 1, min(SHEET_IMAGES, len(candidates))).round().astype(int)
    return sorted({candidates[number] for number in spaced})


class SizeMeter:
    """Adds up the bytes of stored numbers, cut into chunks and packed as in a store, without writing one."""

    def __init__(self, packing: str, dtypes: Mapping[int, str]) -> None:
        """`packing` and `dtypes`, by resolution, are those of the store, see `StoreSpec`."""
        self._packing, self._dtypes = packing, dtypes
        self._waiting: dict[int, NDArray[np.generic]] = {}
        self._bytes = 0

    def add(self, stored: Stored) -> None:
        """Take up one batch: latent resolution to [B, columns, ...]."""
        for resolution, numbers in stored.items():
            waiting = self._waiting.get(resolution, numbers[:0])
            numbers = np.concatenate([waiting, numbers])
            self._waiting[resolution] = self._pack_whole_chunks(numbers, np.dtype(self._dtypes[resolution]))

    def _pack_whole_chunks(self, numbers: NDArray[np.generic], dtype: np.dtype) -> NDArray[np.generic]:
        """Count all chunks that are full; returns the rest."""
        length = chunk_length(ROW_GROUP_SIZE, CHUNK_BYTES, numbers[0].size * dtype.itemsize)
        whole = len(numbers) // length * length
        self._bytes += sum(self._packed(numbers[first : first + length], dtype) for first in range(0, whole, length))
        return numbers[whole:]

    def _packed(self, chunk: NDArray[Any], dtype: np.dtype) -> int:
        # What a store would refuse is counted in the type that it fits into.
        return compressed_bytes(chunk.astype(dtype) if fits(chunk, dtype) else chunk, self._packing)

    def total_bytes(self) -> int:
        """Return the packed bytes of all images so far; a store's metadata and names come on top."""
        waiting = (self._packed(n, np.dtype(self._dtypes[r])) for r, n in self._waiting.items() if len(n))
        return self._bytes + sum(waiting)
