"""The ways to compress images that are compared: files of an image codec, latents of a model, a store that is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..encode.coder import LatentCoder
from ..encode.encoded_store import EncodedStore
from ..model.decoder import Decoder
from ..model.hvae import HVAE
from ..store.disk_use import DiskUse
from ..store.quantiser import check_clipped
from .image_codecs import ImageCodec
from .rate_distortion import Batch, Coded, Sizes, Stopwatch
from .reconstruction import SizeMeter


@dataclass
class Files:
    """A file per image."""

    codec: ImageCodec
    channels: int
    bytes: int = 0

    @property
    def label(self) -> tuple[str, str, str]:
        """Kind, codec and quality."""
        return "lossless" if self.codec.quality is None else "lossy", self.codec.name, self.codec.setting

    def code(self, batch: Batch) -> Coded:
        """Encode and decode a batch, image by image."""
        watch = Stopwatch()
        files = [self.codec.encode(pixels) for pixels in batch.seen]
        encoding = watch.lap()
        decoded = np.stack([self.codec.decode(file, self.channels) for file in files])
        decoding = watch.lap()
        self.bytes += sum(map(len, files))
        return Coded(decoded, encoding, decoding)

    def sizes(self, images: int) -> Sizes:
        """Return bytes per image without what a file of one grey pixel takes, and with it."""
        size = self.bytes / images
        return Sizes(max(size - self.codec.header_bytes(self.channels), 0.0), size)


@dataclass
class Latents:
    """The kept latents of a model, compressed as a store has them; names and metadata would come on top."""

    coder: LatentCoder
    rule: str  # what is kept, as the user said it
    step: float  # of the quantiser, in posterior standard deviations
    meter: SizeMeter  # counts its bytes

    @property
    def label(self) -> tuple[str, str, str]:
        """Kind, what is kept, and the step."""
        return "model", self.rule, f"step {self.step:g}"

    def code(self, batch: Batch) -> Coded:
        """Encode and decode a batch; raises `ClippedError` if a latent is too large for the codec."""
        watch = Stopwatch(self.coder.model.device)
        stored = self.coder.encode(torch.from_numpy(batch.images))
        self.meter.add(stored)
        encoding = watch.lap()
        decoded = self.coder.decode_pixels(stored).cpu().numpy()
        decoding = watch.lap()
        check_clipped(self.coder.codec, stored, "the images measured")
        return Coded(decoded, encoding, decoding)

    def sizes(self, images: int) -> Sizes:
        """Return the bytes of the latents per image."""
        return Sizes(self.meter.total_bytes() / images, None)


@dataclass
class Stored:
    """Images in a store, whose bytes are those of all its images on average."""

    store: EncodedStore
    rows: Sequence[int]  # row of each image that is measured
    decoder: HVAE | Decoder
    use: DiskUse

    @property
    def label(self) -> tuple[str, str, str]:
        """Kind, name of the store, and its codec."""
        codec = self.store.codec.to_dict()
        return "store", self.store.path.name, f"step {codec['step']:g}" if "step" in codec else codec["name"]

    def code(self, batch: Batch) -> Coded:
        """Read and decode the images of a batch."""
        watch = Stopwatch(self.decoder.device)
        decoded = self.store.decode([self.rows[number] for number in batch.numbers], self.decoder)
        return Coded(decoded, None, watch.lap())

    def sizes(self, images: int) -> Sizes:
        """Return bytes per image of the store: its latents, and all of it."""
        return Sizes(self.use.latents / len(self.store), self.use.total / len(self.store))
