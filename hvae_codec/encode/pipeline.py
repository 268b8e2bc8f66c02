"""Images to a store, row group by row group; killed at any moment, the same call continues where it stopped.

images ─ read ahead ─> batches ─ coder ─> row group ─ written behind ─> PATH.partial ─ renamed ─> PATH
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..config import CHUNK_BYTES, ROW_GROUP_SIZE, Config, config_to_dict
from ..data.content import remember_content
from ..data.sources import Images, ImageSource, as_source, is_opened
from ..errors import DataError, UsageError
from ..lookahead import write_behind
from ..model.arriving import Arriving
from ..model.batch_size import batch_size_of
from ..model.checkpoint import keep_weights, model_hash
from ..model.hvae import HVAE
from ..model.keyed_noise import keyed_noise
from ..progress import Progress
from ..prune.kl_stats import KLStats, kl_stats
from ..prune.mask import LatentMask
from ..prune.rank_batches import image_keys
from ..prune.sweep import MaskedElbo, finite_terms
from ..storage.location import LocationLike, location_of
from ..store.arrays import check_pieces, chunk_length
from ..store.metadata import Embedded, ImageRecord, ModelRecord, SourceRecord
from ..store.open_writer import check_location, is_written, open_writer
from ..store.quantiser import ClippedError, Codec, IntCodec, check_clipped
from ..store.reader import Stored
from ..store.rowgroups import runs
from ..store.schema import CHECKSUM
from ..store.spec import StoreSpec
from ..store.workers import Worker
from ..store.writer import StoreWriter
from ..train.run_folder import check_begun_with
from ..verification.verify import check_written
from .batch_coder import BatchCoder, EncodedBatch
from .coder import LatentCoder, quantiser_steps
from .embedded_model import check_granularity, weights_to_embed
from .encoded_store import EncodedStore, open_store
from .sketch import SKETCH, sketch
from .unchanged_images import ChangedImageError, check_unchanged, check_unchanged_since

SAMPLE_IMAGES = 1000  # images that statistics are measured on if nobody says how many

GPU_WRITERS = 4  # threads that write row groups

MAX_ROW_GROUP, MAX_CHUNK = 2**20, 2**30
"""Images in a row group, which is held in memory, and bytes of a chunk, of which compressors take less than 2 GiB."""

PerImage = dict[str, NDArray[np.number]]
"""Name of a per-image array to its numbers, [B]."""
EVALUATED = ("distortion", "rate")  # per-image arrays of bits/dim


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """How a store is written; its latents do not depend on these, but for float rounding."""

    batch_size: int | None = None  # images through the model at once; None: what `default_batch_size` chooses
    overwrite: bool = False  # whether a store that is already there is replaced
    row_group_size: int = ROW_GROUP_SIZE  # images in a row group: one file in each latent array, what a kill loses
    chunk_bytes: int = CHUNK_BYTES  # uncompressed bytes that a chunk of two images or more does not exceed
    evaluate: bool = False  # whether each image's rate and distortion are stored; about two passes more
    seed: int = 0  # of the noise that rate and distortion are measured with
    embed: Embedded = ""  # what the store carries of its model, so that it can be decoded without the run
    verify: bool = False  # whether a sketch of each decoded image is stored, and what was written is read back
    check: bool = False  # whether a resumed call reads all images that were encoded, whatever the times of files say

    def __post_init__(self) -> None:
        limits = {"row_group_size": MAX_ROW_GROUP, "chunk_bytes": MAX_CHUNK, "batch_size": MAX_ROW_GROUP}
        for name, most in limits.items():
            if getattr(self, name) is not None and not 1 <= getattr(self, name) <= most:
                option = {"row_group_size": "shard", "chunk_bytes": "chunk"}.get(name, name).replace("_", "-")
                raise UsageError(f"{name} (--{option}) is {getattr(self, name)}; give 1 to {most}")
        if self.embed not in get_args(Embedded):
            raise UsageError(f"embed is {self.embed!r}; give decoder or whole, or nothing")


def encode_images(
    model: HVAE,
    images: Images,
    path: LocationLike,
    *,
    mask: LatentMask,
    codec: Codec | None = None,
    stats: KLStats | None = None,
    options: EncodeOptions | None = None,
    progress: Progress | None = None,
    comparing: Progress | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> EncodedStore:
    """Encode `images` into a new store at `path`, keeping what `mask` keeps.

    `codec` is integer codes with a step of one posterior std by default; the stds come from `stats`, or from up to
    1,000 of the images. `path` is a folder or a URL, s3://, gs:// or file://. In a folder, the store is built as
    `path` + `.partial` and renamed when it is whole; killed at any moment, the same call continues. `progress` is
    called with the images done, those of an earlier, interrupted call included, and the images in all. Images that were
    encoded by that call must be as they were then: `comparing` is called with those whose bytes were read, and those to
    read (`content_checksums`). With `overwrite`, changed ones are encoded again, and so are all others.
    The model's run keeps these weights if it is trained on (`keep_weights`), unless the store carries all of them; if
    it cannot, `on_warning` is called with a sentence (it logs by default).
    Raises `DataError` on images that cannot be read or do not fit, or were opened with other preprocessing than those
    of the model's run, `StoreError` if `path` exists, `UsageError`
    if the mask or the statistics are another model's, if the mask keeps single positions and the decoder is to be
    embedded, or if latents are too large for the codec: then what was written of the store is removed; `ModelError` if
    the decoder that is to be embedded decodes to something else than the model.
    """
    store = encode_worker(
        model,
        images,
        path,
        Worker(),
        mask=mask,
        codec=codec,
        stats=stats,
        options=options,
        progress=progress,
        comparing=comparing,
        on_warning=on_warning,
    )
    assert store is not None  # one worker owns all row groups
    return store


def encode_worker(
    model: HVAE,
    images: Images,
    path: LocationLike,
    worker: Worker,
    *,
    mask: LatentMask,
    codec: Codec | None = None,
    stats: KLStats | None = None,
    options: EncodeOptions | None = None,
    progress: Progress | None = None,
    comparing: Progress | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> EncodedStore | None:
    """Encode the row groups that `worker` owns, of a store that several processes write in any order.

    All give what `encode_images` takes, the same but for `worker`; the first creates the store, and the one that finds
    all row groups written publishes and returns it, as does every later call. None: row groups of other workers are
    missing yet. A killed worker's are written by the same call again. `progress` counts this worker's images.
    Raises what `encode_images` does, and `StoreError` if another process writes this worker's row groups, or if the
    other workers were given something else.
    """
    options, location = options or EncodeOptions(), location_of(path)
    encoder, spec = plan_store(model, images, mask=mask, codec=codec, stats=stats, options=options)
    if worker.count > 1 and is_written(location, spec):
        store = open_store(location)
        check_unchanged_since(store, encoder.source, worker, check=options.check, progress=comparing)
        return store
    check_location(location, options.overwrite)
    with open_writer(location, spec, options.overwrite, worker) as writer:
        writer = _of_unchanged(writer, encoder.source, options, comparing)
        with writer.discarded_on(ClippedError), remembered_content(encoder.source):
            write_row_groups(writer, encoder, progress)
        return finish_store(writer, model, on_warning)


def plan_store(
    model: HVAE,
    images: Images,
    *,
    mask: LatentMask,
    codec: Codec | None = None,
    stats: KLStats | None = None,
    options: EncodeOptions | None = None,
) -> tuple[ImageEncoder, StoreSpec]:
    """Make what encodes `images` as `encode_images` would, and what their store is made from; nothing is written.

    Raises what `encode_images` does before it reads images.
    """
    options, codec, source = options or EncodeOptions(), codec or IntCodec(), as_source(images)
    check_images(model, source)
    if model.run is not None and is_opened(images):
        check_begun_with(model.run, source)
    check_granularity(options.embed, mask.granularity)
    batch_size = batch_size_of(model, options.batch_size)
    stats = stats or kl_stats(model, source.evenly(SAMPLE_IMAGES), batch_size=batch_size)
    if stats.model_hash != model_hash(model):
        raise UsageError("the KL statistics were measured with another model; measure them with this one")
    coder = LatentCoder(model, mask, codec, quantiser_steps(mask, codec, stats))
    measured = {"evaluate": options.evaluate, "seed": options.seed, "verify": options.verify}
    encoder = ImageEncoder.of(coder, source, options.row_group_size, batch_size, **measured)
    spec = _spec(encoder, options)
    _check_sizes(spec, options, batch_size)
    return encoder, spec


def _of_unchanged(
    writer: StoreWriter, source: ImageSource, options: EncodeOptions, comparing: Progress | None
) -> StoreWriter:
    """The unfinished store, if the images in it are as they were; otherwise a new one if the old may be overwritten."""
    try:
        check_unchanged(writer, source, check=options.check, progress=comparing)
    except ChangedImageError:
        if options.overwrite and writer.worker.count == 1:
            return writer.anew()
        raise
    return writer


@contextmanager
def remembered_content(source: ImageSource) -> Iterator[None]:
    """Let later commands know the checksums of all images that were read meanwhile, also after an error or Ctrl-C."""
    try:
        yield
    finally:
        remember_content(source)


def finish_store(
    writer: StoreWriter, model: HVAE, on_warning: Callable[[str], None] | None = None
) -> EncodedStore | None:
    """Publish and open the store if all workers are done; its weights are kept first, so that it can be decoded.

    If it carries its decoder, they are kept too: to append and to repair takes the whole model.
    """
    embedded = writer.spec.model.embedded
    error = "" if embedded == "whole" else keep_weights(model)
    if error:
        lost = "appended to or repaired" if embedded else "decoded"
        (on_warning or logging.getLogger(__name__).warning)(
            f"the weights could not be kept in {model.run} ({error}); {writer.path} cannot be {lost} any more if that "
            "run is trained on, so copy the run first"
        )
    return open_store(writer.path) if writer.finish() else None


@dataclass(frozen=True)
class ImageEncoder:
    """Encodes images of a source, in batches that row groups are whole numbers of."""

    batch_coder: BatchCoder
    source: ImageSource
    evaluate: bool = False  # whether each image's rate and distortion, bits/dim, are measured
    seed: int = 0  # of the noise that these are measured with
    verify: bool = False  # whether a sketch is made of each image as it decodes, and what is written is read back
    checksums: bool = True  # whether the CRC-32 of each image's bytes goes with it, as stores of version 4 have it

    @classmethod
    def of(
        cls, coder: LatentCoder, source: ImageSource, row_group_size: int, max_batch: int, **measured: Any
    ) -> ImageEncoder:
        """Encode with `coder`, at most `max_batch` images at once; `measured` are the other fields."""
        return cls(BatchCoder(coder, chunk_length(row_group_size, max_batch, 1)), source, **measured)

    @property
    def coder(self) -> LatentCoder:
        """What encodes."""
        return self.batch_coder.coder

    @property
    def batch_size(self) -> int:
        """Images through the model at once."""
        return self.batch_coder.size

    @property
    def per_image(self) -> tuple[str, ...]:
        """The per-image arrays that are measured of the pixels."""
        return (*(EVALUATED if self.evaluate else ()), *((SKETCH,) if self.verify else ()))

    def encode_range(self, rows: range) -> tuple[Stored, PerImage]:
        """Stored numbers of the source's images `rows`, and what is measured of them."""
        return joined(self.batches(rows))

    def batches(self, rows: range) -> Generator[tuple[Stored, PerImage]]:
        """The same batch by batch; files are decoded ahead."""
        with closing(self.source.batches(self.batch_size, start=rows.start, stop=rows.stop)) as batches:
            numbered = zip(rows[:: self.batch_size], batches, strict=True)
            yield from self.batch_coder.fetched(itertools.starmap(self._start, numbered))

    def _start(self, first: int, pixels: NDArray[np.uint8]) -> Callable[[], tuple[Stored, PerImage]]:
        """Start to encode and to measure a batch; the function returned waits for that."""
        batch = self.batch_coder.start_encoding(pixels)
        count, stored_of = len(pixels), batch.stored  # not the batch: its activations are large
        terms = Arriving(self._terms(batch, first, count)) if self.evaluate else None
        checksums = self.source.checksums(range(first, first + count)) if self.checksums else None

        def fetch() -> tuple[Stored, PerImage]:
            stored, per_image = stored_of(), PerImage()
            if terms is not None:
                (measured,) = finite_terms(terms.numpy()[:, :, :count])
                per_image = dict(zip(("rate", "distortion"), measured, strict=True))
            if self.verify:
                per_image[SKETCH] = sketch(self.batch_coder.decode_checked(stored))
            if checksums is not None:
                per_image[CHECKSUM] = checksums
            return stored, per_image

        return fetch

    def _terms(self, batch: EncodedBatch, first: int, count: int) -> Tensor:
        """Compute rate and distortion, bits/dim, of `count` images from number `first` on: [1, 2, size]."""
        keys = image_keys(self.source, slice(first, first + count), self.seed)
        keys += keys[-1:] * (len(batch.images) - len(keys))
        noise = keyed_noise(self.coder.model.config, keys, self.coder.model.device)
        return self._elbo(batch.activations, batch.images, noise)

    @cached_property
    def _elbo(self) -> MaskedElbo:
        return MaskedElbo(self.coder.model, [self.coder.mask])


def joined(parts: Iterable[tuple[Stored, PerImage]]) -> tuple[Stored, PerImage]:
    """What was given for several batches, as one."""
    stored, per_image = (
        {key: np.concatenate([part[key] for part in dicts]) for key in dicts[0]} for dicts in zip(*parts, strict=True)
    )
    return stored, per_image


def write_row_groups(writer: StoreWriter, encoder: ImageEncoder, progress: Progress | None, start: int = 0) -> None:
    """Encode and write the row groups that the writer's worker owns and has not written.

    `start` is the number of the encoder's first image in the store, which may hold others before it.
    """
    first = -(-start // writer.spec.row_group_size)
    pending = [r for r in writer.own_pending() if r >= first]
    total = sum(len(writer.rows(r)) for r in range(first, writer.row_groups) if writer.worker.owns(r))
    done = total - sum(len(writer.rows(r)) for r in pending)

    def write(row_group: tuple[int, Stored, PerImage]) -> int:
        writer.write(*row_group)
        if encoder.verify:
            check_written(writer, row_group[0])
        return len(writer.rows(row_group[0]))

    encoded = _row_groups(writer, encoder, pending, start)
    # A GPU makes row groups faster than one thread compresses them; a CPU's threads are busy.
    writers = GPU_WRITERS if encoder.batch_coder.on_gpu else 1
    # Closed at once, also on an error: their threads must not outlive the call.
    with closing(encoded), closing(write_behind(write, encoded, writers)) as written:
        for images in written:
            done += images
            if progress is not None:
                progress(done, total)


def _row_groups(
    writer: StoreWriter, encoder: ImageEncoder, row_groups: list[int], start: int
) -> Generator[tuple[int, Stored, PerImage]]:
    """Yield each row group with its numbers. Batches never cross row groups, so a resumed store has the same bytes.

    Consecutive row groups are read as one, so that files are decoded ahead across them.
    """
    for first, last in runs(row_groups):
        images = range(writer.rows(first).start - start, writer.rows(last).stop - start)
        with closing(encoder.batches(images)) as batches:
            for row_group in range(first, last + 1):
                rows = writer.rows(row_group)
                stored, per_image = joined(itertools.islice(batches, -(-len(rows) // encoder.batch_size)))
                check_clipped(writer.spec.codec, stored, f"images {rows.start} to {rows.stop - 1}")
                yield row_group, stored, per_image


def check_images(model: HVAE, source: ImageSource) -> None:
    """Raise `DataError` if there are no images, or if they are not what the model takes."""
    if not len(source):
        raise DataError("there are no images to encode; give at least one")
    size, config = source.size, model.config
    found, expected = [source.channels, size, size], [config.channels, config.image_size, config.image_size]
    if found != expected:
        raise DataError(f"images are {found}; this model takes {expected}")


def _check_sizes(spec: StoreSpec, options: EncodeOptions, batch_size: int) -> None:
    """Raise `UsageError` if row groups can only be cut into batches or chunks that are far too small."""
    check_pieces(options.row_group_size, batch_size, "batches")
    for array in (spec.schema[f"z{resolution}"] for resolution in spec.resolutions):
        image_bytes = math.prod(array.shape[1:]) * np.dtype(array.dtype).itemsize
        check_pieces(options.row_group_size, options.chunk_bytes // image_bytes, "chunks")


def _spec(encoder: ImageEncoder, options: EncodeOptions) -> StoreSpec:
    coder, source, config = encoder.coder, encoder.source, encoder.coder.model.config
    model_config = config_to_dict(Config(config))["model"]
    run = "" if coder.model.run is None else coder.model.run.as_posix()
    weights, decoder_hash = weights_to_embed(coder, options.embed, source)
    return StoreSpec(
        names=source.names,
        labels=source.labels,
        splits=source.split_names,
        file_bytes=source.file_bytes,
        columns=coder.columns,
        steps=coder.steps,
        codec=coder.codec,
        model=ModelRecord(
            hash=model_hash(coder.model),
            config=model_config,
            run=run,
            embedded=options.embed,
            decoder_hash=decoder_hash,
        ),
        mask=coder.mask.to_dict(),
        image=ImageRecord(size=config.image_size, channels=config.channels, bits=config.bits),
        source=SourceRecord(
            fingerprint=source.fingerprint, bytes=source.source_bytes, preprocessing=source.preprocessing.to_dict()
        ),
        row_group_size=options.row_group_size,
        chunk_bytes=options.chunk_bytes,
        per_image=encoder.per_image,
        weights=weights,
    )
