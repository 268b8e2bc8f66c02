"""Images to a store, row group by row group; killed at any moment, the same call continues where it stopped.

images ─ read ahead ─> batches ─ coder ─> row group ─ written behind ─> PATH.partial ─ renamed ─> PATH
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, get_args

from ..config import CHUNK_BYTES, ROW_GROUP_SIZE, Config, config_to_dict
from ..data.content import remember_content
from ..data.sources import Images, ImageSource, as_source, is_opened
from ..engine.engine import Engine, Here
from ..engine.given import Executors, given_engine
from ..engine.tally import Tally
from ..errors import DataError, UsageError
from ..model.batch_size import batch_size_of
from ..model.checkpoint import keep_weights, model_hash
from ..model.hvae import HVAE
from ..model.reference import ModelReference, ModelSource
from ..progress import Progress
from ..prune.kl_stats import KLStats, kl_stats
from ..prune.mask import LatentMask
from ..storage.location import LocationLike, location_of
from ..store.arrays import check_pieces
from ..store.compressors import ZSTD, packing_of
from ..store.layout import MAX_CHUNK, MAX_ROW_GROUP, check_chunks, check_limit
from ..store.metadata import Embedded, ImageRecord, ModelRecord, SourceRecord
from ..store.open_writer import check_location, create_or_resume, is_written, locked
from ..store.quantiser import Codec, IntCodec
from ..store.spec import StoreSpec
from ..store.workers import Worker
from ..store.writer import StoreWriter
from ..train.run_folder import check_begun_with
from .array_dtypes import CODE_BITS, array_dtypes
from .coder import LatentCoder, quantiser_steps
from .driver import Workers, driver_of
from .embedded_model import check_granularity, weights_to_embed
from .encoded_store import EncodedStore, open_store
from .image_encoder import ImageEncoder
from .in_process import write_here
from .missing import MissingRowGroups
from .unchanged_images import ChangedImageError, check_unchanged, check_unchanged_since
from .wider_codes import write_with_room

SAMPLE_IMAGES = 1000  # images that statistics are measured on if nobody says how many


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """How a store is written; its latents do not depend on these, but for float rounding."""

    batch_size: int | None = (
        None  # images through the model at once; None: what `default_batch_size` chooses where it is done
    )
    overwrite: bool = False  # whether a store that is already there is replaced
    row_group_size: int = ROW_GROUP_SIZE  # images in a row group: one file in each latent array, what a kill loses
    chunk_bytes: int = CHUNK_BYTES  # uncompressed bytes that a chunk of two images or more does not exceed
    packing: str = ZSTD  # how chunks of codes are packed: zstd, archive or blosc; floats have blosc
    code_bits: int | None = None  # of each code at first: 8 or 16; None: what each array's codes will need
    evaluate: bool = False  # whether each image's rate and distortion are stored; about two passes more
    seed: int = 0  # of the noise that rate and distortion are measured with
    embed: Embedded = ""  # what the store carries of its model, so that it can be decoded without the run
    verify: bool = False  # whether a sketch of each decoded image is stored, and what was written is read back
    check: bool = False  # whether a resumed call reads all images that were encoded, whatever the times of files say
    device: str | None = None  # where workers elsewhere compute: cpu, cuda or auto (a GPU, if any); None: as here

    def __post_init__(self) -> None:
        check_limit("row_group_size", "--shard", self.row_group_size, MAX_ROW_GROUP)
        check_limit("chunk_bytes", "--chunk", self.chunk_bytes, MAX_CHUNK)
        check_limit("batch_size", "--batch-size", self.batch_size, MAX_ROW_GROUP)
        if self.code_bits not in (None, *CODE_BITS):
            raise UsageError(f"code_bits (--code-bits) is {self.code_bits}; give 8 or 16, or nothing")
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
    engine: Engine | None = None,
    executor: Executors | None = None,
    tally: Tally | None = None,
    progress: Progress | None = None,
    comparing: Progress | None = None,
    widening: Progress | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> EncodedStore:
    """Encode `images` into a new store at `path`, keeping what `mask` keeps.

    `codec` is integer codes with a step of one posterior std by default; the stds come from `stats`, or from up to
    1,000 of the images. `path` is a folder or a URL, s3://, gs:// or file://. In a folder, the store is built as
    `path` + `.partial` and renamed when it is whole; killed at any moment, the same call continues. `progress` is
    called with the images done, those of an earlier, interrupted call included, and the images in all. Images that were
    encoded by that call must be as they were then: `comparing` is called with those whose bytes were read, and those to
    read (`content_checksums`). With `overwrite`, changed ones are encoded again, and so are all others.
    If an array has no room for a code, its type becomes int16: `on_warning` is called with a sentence, `widening` with
    the images whose latents were rewritten and those to rewrite, and the encode goes on.
    Without `engine` and `executor`, that is done in this process. With one of them, each row group is a task there; its
    process must see the model's run, the images and `path` under the same absolute paths. `executor` is one of
    `concurrent.futures` or a function that makes one; `tally` counts workers and retries. Then a row group whose images
    cannot be read, or that ends its worker again and again, stops no other one; `StoreError` names them all at the end,
    and the store stays unfinished.
    The model's run keeps these weights if it is trained on (`keep_weights`), unless the store carries all of them; if
    it cannot, `on_warning` is called with a sentence (it logs by default).
    Raises `DataError` on images that cannot be read or do not fit, or were opened with other preprocessing than those
    of the model's run, `StoreError` if `path` exists, `UsageError` if the mask or the statistics are another model's,
    if the mask keeps single positions and the decoder is to be embedded, or if latents are too large for the codec:
    then what was written of the store is removed; `ModelError` if the decoder that is to be embedded decodes to
    something else than the model.
    """
    what: Any = {"mask": mask, "codec": codec, "stats": stats, "options": options}
    where: Any = {"engine": engine, "executor": executor, "tally": tally}
    told: Any = {"progress": progress, "comparing": comparing, "widening": widening, "on_warning": on_warning}
    store = encode_worker(model, images, path, Worker(), **what, **where, **told)
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
    engine: Engine | None = None,
    executor: Executors | None = None,
    tally: Tally | None = None,
    progress: Progress | None = None,
    comparing: Progress | None = None,
    widening: Progress | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> EncodedStore | None:
    """Encode the row groups that `worker` owns, of a store that several processes write in any order.

    All give what `encode_images` takes, the same but for `worker`; the first creates the store, and the one that finds
    all row groups written publishes and returns it, as does every later call. None: row groups of other workers are
    missing yet. A killed worker's are written by the same call again. `progress` counts this worker's images.
    Raises what `encode_images` does, and `StoreError` if another process writes all row groups, or if the other workers
    were given something else; `CodeRangeError` of one of several workers, if an array has no room for a code.
    """
    options, location = options or EncodeOptions(), location_of(path)
    if executor is not None or not isinstance(engine or Here(), Here):
        options = replace(options, batch_size=batch_size_of(model, options.batch_size, options.device))
    encoder, spec = plan_store(model, images, mask=mask, codec=codec, stats=stats, options=options)
    if worker.count > 1 and is_written(location, spec):
        store = open_store(location)
        check_unchanged_since(store, encoder.source, worker, check=options.check, progress=comparing)
        return store
    check_location(location, options.overwrite)
    with given_engine(engine, executor) as used, locked(location, worker):
        writer, is_begun = create_or_resume(location, spec, options.overwrite, worker, widening)
        writer = _of_unchanged(writer, encoder.source, options, comparing)
        workers = Workers(used, options.device or model.device.type, tally or Tally())

        def write(writer: StoreWriter) -> None:
            missing = MissingRowGroups(writer, encoder)
            write_missing(missing, workers, lambda: ModelReference.of(model), progress, read_back_all=is_begun)

        with remembered_content(encoder.source):
            writer = write_with_room(writer, write, widening, on_warning)
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
    dtypes = array_dtypes(mask, codec, stats, packing=options.packing, code_bits=options.code_bits)
    spec = _spec(encoder, options, dtypes)
    _check_sizes(spec, options, batch_size)
    return encoder, spec


def write_missing(
    missing: MissingRowGroups,
    workers: Workers,
    model: Callable[[], ModelSource],
    progress: Progress | None,
    *,
    read_back_all: bool = False,
) -> None:
    """Encode and write what is missing, in this process or by workers elsewhere; raises what `Driver.write` does.

    `model` tells where workers find it.
    """
    if isinstance(workers.engine, Here):
        write_here(missing, progress, read_back=read_back_all and missing.writer.worker.count == 1)
        return
    own = missing.encoder.coder.model
    driver = driver_of(missing, model(), workers, progress)
    if missing.writer.spec.model.embedded != "whole":
        keep_weights(own)  # workers may start when the run has been trained on
    driver.write(read_back_all=read_back_all)


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
    if writer.worker.count == 1:
        writer.publish()
    elif not writer.finish():
        return None
    return open_store(writer.path)


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
    check_chunks(spec.layout)


def _spec(encoder: ImageEncoder, options: EncodeOptions, dtypes: Mapping[int, str]) -> StoreSpec:
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
        packing=packing_of(coder.codec.dtype, options.packing),
        dtypes=dtypes,
        per_image=encoder.per_image,
        weights=weights,
    )
