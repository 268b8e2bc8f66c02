"""Images to a store, row group by row group; killed at any moment, the same call goes on where it stopped.

images ─ read ahead ─> batches ─ coder ─> row group ─ written behind ─> PATH.partial ─ renamed ─> PATH
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..config import CHUNK_BYTES, ROW_GROUP_SIZE, Config, config_to_dict
from ..data.sources import ImageSource, as_source
from ..errors import DataError, UsageError
from ..lookahead import write_behind
from ..model.checkpoint import model_hash
from ..model.hvae import HVAE
from ..progress import Progress
from ..prune.kl_stats import KLStats, kl_stats
from ..prune.mask import LatentMask
from ..storage.location import Location, LocationLike, location_of
from ..store.metadata import ImageRecord, ModelRecord, SourceRecord
from ..store.open_writer import check_location, is_written, open_writer
from ..store.quantiser import Codec, IntCodec
from ..store.reader import Stored
from ..store.sketch import SKETCH
from ..store.spec import StoreSpec
from ..store.verify import check_written
from ..store.workers import Worker
from ..store.writer import StoreWriter
from .coder import LatentCoder, quantiser_steps
from .embedded_model import model_weights
from .encoded_store import EncodedStore, open_store
from .image_encoder import ImageEncoder, PerImage, joined

SAMPLE_IMAGES = 1000
"""Images that statistics are measured on where nobody says how many."""


@dataclass(frozen=True)
class EncodeOptions:
    """How a store is written; its latents do not depend on these, but for float rounding."""

    batch_size: int = 64
    """Images through the model at once; a row group is cut into these."""
    overwrite: bool = False
    """Whether a store that is already there is replaced."""
    row_group_size: int = ROW_GROUP_SIZE
    """Images in a row group: one file in each latent array, what a worker writes and a killed encode loses."""
    chunk_bytes: int = CHUNK_BYTES
    """Uncompressed size that the smallest readable unit does not exceed where it holds two images or more."""
    evaluate: bool = False
    """Whether each image's rate and distortion, bits/dim, are measured and stored; takes about two passes more."""
    seed: int = 0
    """Of the noise that rate and distortion are measured with."""
    embed_model: bool = False
    """Whether the store carries the model, so that it can be decoded without the run."""
    verify: bool = False
    """Whether each row group is decoded before it is written, a sketch of each decoded image is stored, and what was
    written is read back; takes about a pass more."""

    @property
    def per_image(self) -> tuple[str, ...]:
        """Arrays of one number an image that are stored with the latents."""
        return (*(("distortion", "rate") if self.evaluate else ()), *((SKETCH,) if self.verify else ()))


def encode_images(
    model: HVAE,
    images: ImageSource | NDArray[np.uint8] | Tensor,
    path: LocationLike,
    *,
    mask: LatentMask,
    codec: Codec | None = None,
    stats: KLStats | None = None,
    options: EncodeOptions | None = None,
    progress: Progress | None = None,
) -> EncodedStore:
    """Encode `images` (a source, or uint8 [N, C, H, W]) into a new store at `path`, keeping what `mask` keeps.

    `codec` is integer codes with a step of one posterior std by default; the stds come from `stats`, or from up to
    1,000 of the images. `path` is a folder or a URL, s3://, gs:// or file://. In a folder, the store is built as
    `path` + `.partial` and renamed when it is whole; killed at any moment, the same call goes on. `progress` is called
    with the images done, those of an earlier, interrupted call included, and the images in all. Several processes
    write one store with `encode_worker`.
    Raises `DataError` on images that cannot be read or do not fit, `StoreError` where `path` exists, `UsageError`
    where the mask or the statistics are another model's.
    """
    job = EncodeJob.of(model, images, mask, codec, stats, options)
    # One worker owns all row groups, so there is a store.
    return cast(EncodedStore, job.run(location_of(path), Worker(), progress))


def encode_worker(
    model: HVAE,
    images: ImageSource | NDArray[np.uint8] | Tensor,
    path: LocationLike,
    worker: Worker,
    *,
    mask: LatentMask,
    codec: Codec | None = None,
    stats: KLStats | None = None,
    options: EncodeOptions | None = None,
    progress: Progress | None = None,
) -> EncodedStore | None:
    """Encode the row groups that `worker` owns, of a store that several processes write in any order.

    All give the same arguments but for `worker`; the first creates the store, and the one that finds all row groups
    written publishes and returns it, as does every later call. None: row groups of other workers are missing yet. A
    killed worker's are written by the same call again, or by `encode`. `progress` counts this worker's images.
    Raises what `encode` does, and `StoreError` where another process writes this worker's row groups, or where the
    other workers were given something else.
    """
    return EncodeJob.of(model, images, mask, codec, stats, options).run(location_of(path), worker, progress)


@dataclass(frozen=True)
class EncodeJob:
    """Images on their way into a store: what is encoded, with what, and how."""

    coder: LatentCoder
    source: ImageSource
    spec: StoreSpec
    options: EncodeOptions
    first: int = 0
    """Number of the source's first image in the store, which may hold others before it."""

    @classmethod
    def of(
        cls,
        model: HVAE,
        images: ImageSource | NDArray[np.uint8] | Tensor,
        mask: LatentMask,
        codec: Codec | None,
        stats: KLStats | None,
        options: EncodeOptions | None,
    ) -> EncodeJob:
        """See `encode`; raises what it does before the first image is encoded."""
        options, codec = options or EncodeOptions(), codec or IntCodec()
        source = as_source(images)
        check_images(model, source)
        stats = stats or kl_stats(model, source.evenly(SAMPLE_IMAGES), batch_size=options.batch_size)
        if stats.model_hash != model_hash(model):
            raise UsageError("the KL statistics were measured with another model; measure them with this one")
        coder = LatentCoder(model, mask, codec, quantiser_steps(mask, codec, stats))
        return cls(coder, source, store_spec(coder, source, options), options)

    def run(self, path: Location, worker: Worker, progress: Progress | None) -> EncodedStore | None:
        """Encode what `worker` owns and is not written yet; the store where it is published now."""
        if worker.count > 1 and is_written(path, self.spec):
            return open_store(path)
        check_location(path, self.options.overwrite)
        with open_writer(path, self.spec, self.options.overwrite, worker) as writer:
            self.write(writer, progress)
            return open_store(path) if writer.finish() else None

    def write(self, writer: StoreWriter, progress: Progress | None) -> None:
        """Encode and write the row groups of the source's images that the worker owns and has not written."""
        own = [r for r in range(-(-self.first // self.spec.row_group_size), writer.row_groups) if writer.worker.owns(r)]
        pending = sorted(set(own) & set(writer.own_pending()))
        total = sum(len(writer.rows(r)) for r in own)
        done = total - sum(len(writer.rows(r)) for r in pending)
        encoded = self._row_groups(writer, pending)
        # Closed at once, also on an error: their threads must not outlive the call.
        with closing(encoded), closing(write_behind(lambda item: self._write(writer, *item), encoded)) as written:
            for row_group in written:
                done += len(writer.rows(row_group))
                if progress is not None:
                    progress(done, total)

    def _write(self, writer: StoreWriter, row_group: int, stored: Stored, per_image: PerImage) -> int:
        writer.write(row_group, stored, per_image)
        if self.options.verify:
            check_written(writer, row_group)
        return row_group

    def _row_groups(self, writer: StoreWriter, row_groups: list[int]) -> Generator[tuple[int, Stored, PerImage]]:
        """Each row group with its numbers. Batches never cross row groups, so a resumed store has the same bytes.

        Stretches of consecutive row groups are read as one, so that files are decoded ahead across them.
        """
        for stretch in _stretches(row_groups):
            start, stop = writer.rows(stretch[0]).start - self.first, writer.rows(stretch[-1]).stop - self.first
            with closing(self.encoder.batches(range(start, stop))) as batches:
                for row_group in stretch:
                    count = -(-len(writer.rows(row_group)) // self.batch_size)
                    yield row_group, *joined(itertools.islice(batches, count))

    @property
    def batch_size(self) -> int:
        """Images through the model at once; row groups are whole batches."""
        return _divisor(self.spec.row_group_size, self.options.batch_size)

    @property
    def encoder(self) -> ImageEncoder:
        """Encodes the source's images as these are stored."""
        options = self.options
        return ImageEncoder(self.coder, self.source, self.batch_size, options.evaluate, options.seed, options.verify)


def check_images(model: HVAE, source: ImageSource) -> None:
    """Raise `DataError` where there are no images, or where they are not what the model takes."""
    if not len(source):
        raise DataError("there are no images to encode; give at least one")
    size, config = source.size, model.config
    found, expected = [source.channels, size, size], [config.channels, config.image_size, config.image_size]
    if found != expected:
        raise DataError(f"images are {found}; this model takes {expected}")


def store_spec(coder: LatentCoder, source: ImageSource, options: EncodeOptions) -> StoreSpec:
    """Everything that is fixed before the first image is encoded."""
    config = coder.model.config
    model_config = config_to_dict(Config(config))["model"]
    run = "" if coder.model.run is None else coder.model.run.as_posix()
    return StoreSpec(
        names=source.names,
        labels=source.labels,
        columns=coder.columns,
        steps=coder.steps,
        codec=coder.codec,
        model=ModelRecord(hash=model_hash(coder.model), config=model_config, run=run, embedded=options.embed_model),
        mask=coder.mask.to_dict(),
        image=ImageRecord(size=config.image_size, channels=config.channels, bits=config.bits),
        source=SourceRecord(fingerprint=source.fingerprint, bytes=source.source_bytes),
        row_group_size=options.row_group_size,
        chunk_bytes=options.chunk_bytes,
        per_image=options.per_image,
        weights=model_weights(coder.model) if options.embed_model else b"",
    )


def _divisor(size: int, batch_size: int) -> int:
    """The largest divisor of a row group's `size` that is at most `batch_size`.

    >>> _divisor(256, 100)
    64
    """
    return next(n for n in range(max(1, min(batch_size, size)), 0, -1) if size % n == 0)


def _stretches(row_groups: list[int]) -> Iterator[list[int]]:
    """Runs of consecutive numbers.

    >>> list(_stretches([0, 1, 4, 5, 7]))
    [[0, 1], [4, 5], [7]]
    """
    for _, run in itertools.groupby(enumerate(row_groups), key=lambda pair: pair[1] - pair[0]):
        yield [row_group for _, row_group in run]
