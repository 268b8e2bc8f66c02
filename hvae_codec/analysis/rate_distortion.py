"""Rate and distortion of ways to compress images: each goes through the same images, batch by batch.

Batch ──> Way.code ──> decoded, seconds ──> RateMeter ──> one row: bytes, bits/dim, PSNR, SSIM, images/s
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from .quality import mean_squared_error, psnr, ssim

Row = dict[str, str | float | bool | None]

COLUMNS = {
    "kind": "model, store, lossless or lossy",
    "method": "the mask, the store or the codec",
    "setting": "quantiser step, quality, or lossless",
    "payload_bytes": "bytes per image of what is in it: without file headers; of a store, its latents",
    "payload_bits_per_dim": "the same, bits/dim",
    "bytes": "bytes per image on disk; NaN of a model, which has no store yet",
    "bits_per_dim": "the same, bits/dim",
    "psnr": "of all images together, from their mean squared error, dB",
    "ssim": "mean over images",
    "exact": "whether every pixel is as it was",
    "encode_per_second": "images per second of one core (of the GPU, if the model is on one); NaN of a store",
    "decode_per_second": "the same",
}
"""What is measured of each way to compress."""


class Batch(NamedTuple):
    """Consecutive images."""

    numbers: range  # among those that are measured
    images: NDArray[np.uint8]  # [B, C, H, W]
    seen: NDArray[np.uint8]  # the same as the model sees them, of the bits that it has: what all are compared with


class Coded(NamedTuple):
    """A batch that was encoded and decoded."""

    decoded: NDArray[np.uint8]  # [B, C, H, W]
    encode_seconds: float | None  # None if it was encoded before
    decode_seconds: float


class Sizes(NamedTuple):
    """Bytes per image."""

    payload: float
    on_disk: float | None


class Way(Protocol):
    """A way to compress images, at one setting."""

    @property
    def label(self) -> tuple[str, str, str]:
        """Kind, method and setting; see `COLUMNS`."""

    def code(self, batch: Batch) -> Coded:
        """Encode and decode a batch."""

    def sizes(self, images: int) -> Sizes:
        """Return bytes per image, once all `images` were coded."""


@dataclass
class RateMeter:
    """Adds up what one way does to the images."""

    way: Way
    mse: list[NDArray[np.float64]] = field(default_factory=list)
    ssim: list[NDArray[np.float64]] = field(default_factory=list)
    encode_seconds: float | None = 0.0
    decode_seconds: float = 0.0

    def add(self, batch: Batch) -> None:
        """Encode, decode and compare a batch."""
        coded = self.way.code(batch)
        self.mse.append(mean_squared_error(batch.seen, coded.decoded))
        self.ssim.append(ssim(batch.seen, coded.decoded))
        known = self.encode_seconds is not None and coded.encode_seconds is not None
        self.encode_seconds = self.encode_seconds + coded.encode_seconds if known else None  # type: ignore[operator]
        self.decode_seconds += coded.decode_seconds

    def row(self, image_dims: int) -> Row:
        """Return the figures, by `COLUMNS`."""
        mse, images = np.concatenate(self.mse), sum(map(len, self.mse))
        kind, method, setting = self.way.label
        payload, on_disk = self.way.sizes(images)
        return {
            "kind": kind,
            "method": method,
            "setting": setting,
            "payload_bytes": payload,
            "payload_bits_per_dim": 8 * payload / image_dims,
            "bytes": on_disk,
            "bits_per_dim": None if on_disk is None else 8 * on_disk / image_dims,
            "psnr": psnr(mse),
            "ssim": float(np.concatenate(self.ssim).mean()),
            "exact": not mse.any(),
            "encode_per_second": _rate(images, self.encode_seconds),
            "decode_per_second": _rate(images, self.decode_seconds),
        }


def _rate(images: int, seconds: float | None) -> float | None:
    return images / max(seconds, 1e-9) if seconds is not None else None


class Stopwatch:
    """Measures seconds of one core: all threads of the process are counted. Of work on a GPU, seconds of a clock.

    Other processes that keep the machine busy, and codecs that start threads, change nothing about it.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device if device is not None and device.type != "cpu" else None
        self._start = self._now()

    def _now(self) -> float:
        if self._device is None:
            return time.process_time()
        torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def lap(self) -> float:
        """Return the seconds since the last lap, or since the start."""
        now, before = self._now(), self._start
        self._start = now
        return now - before


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
