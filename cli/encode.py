"""`hvae-codec encode`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from . import encode_options as option
from .display import console, interruptible, report_source, stages
from .distributed_session import distributed_session
from .options import (
    LATEST_RUN,
    BatchSize,
    Codec,
    CodecName,
    Count,
    CountName,
    Data,
    Device,
    DeviceOption,
    Granularity,
    GranularityName,
    Model,
    Seed,
    SkipBroken,
    Split,
    SplitName,
    Step,
)

if TYPE_CHECKING:
    from hvae_codec.data.sources import ImageSource
    from hvae_codec.distributed import DistributedContext
    from hvae_codec.encode.pipeline import EncodeOptions
    from hvae_codec.model.hvae import HVAE
    from hvae_codec.prune.cutoffs import CutoffSpec
    from hvae_codec.store.quantiser import Codec as LatentCodec
    from hvae_codec.store.reader import Store as EncodedStore
    from hvae_codec.store.workers import Worker


def command(
    data: Data,
    store: option.Store,
    keep: option.Keep = "",
    cutoff: option.Cutoff = "",
    tolerance: option.Tolerance = "",
    mask: option.Mask = None,
    granularity: Granularity = GranularityName.variate,
    count: Count = CountName.dimensions,
    codec: Codec = CodecName.int,
    step: Step = 1.0,
    split: Split = SplitName.all,
    worker: option.WorkerOption = "",
    evaluate: option.Evaluate = "1000",
    row_group_size: option.Shard = 256,
    chunk: option.Chunk = 131072,
    embed_model: option.EmbedModel = False,
    verify: option.Verify = False,
    overwrite: option.Overwrite = False,
    model: Model = LATEST_RUN,
    device: DeviceOption = Device.auto,
    batch_size: BatchSize = 64,
    seed: Seed = 0,
    skip_broken: SkipBroken = False,
) -> None:
    """Encode images into a store of their most informative latents.

    Prints what this cutoff costs on held-out images and what the store takes on disk. An interrupted encode goes on
    when the same command is run again. Several processes write one store: torchrun --nproc-per-node N -m
    hvae_codec_cli encode ..., or this command with --worker 0/N to N-1/N, in any order and on any machines that see the
    same folders.
    """
    from hvae_codec.analysis.cutoff_cost import images_to_evaluate
    from hvae_codec.cpu import keep_freed_memory
    from hvae_codec.data.sources import open_images
    from hvae_codec.encode.pipeline import EncodeOptions
    from hvae_codec.model.checkpoint import load_model
    from hvae_codec.prune.cutoffs import read_wish
    from hvae_codec.store.open_writer import check_location
    from hvae_codec.store.quantiser import make_codec

    wish = read_wish(keep, cutoff, tolerance, mask, granularity.value, count.value)
    measured, latent_codec = images_to_evaluate(evaluate), make_codec(codec.value, step)
    options = EncodeOptions(batch_size, overwrite, row_group_size, chunk, evaluate == "all", seed, embed_model, verify)
    keep_freed_memory()
    with distributed_session(device) as processes:
        share = option.worker_of(worker, processes)
        if not worker:
            processes.run_on_main(lambda: check_location(store, overwrite))
        hvae = load_model(model, processes.device)
        config = hvae.config
        source = open_images(data, size=config.image_size, channels=config.channels, skip_broken=skip_broken)
        written = _encode(hvae, source, split.value, store, wish, latent_codec, measured, options, share, processes)
        _report(written, source, store, share if worker else None)


def _encode(
    model: HVAE,
    source: ImageSource,
    split: Literal["train", "val", "all"],
    store: str,
    wish: CutoffSpec,
    codec: LatentCodec,
    measured: int | None,
    options: EncodeOptions,
    share: Worker,
    processes: DistributedContext,
) -> EncodedStore | None:
    from hvae_codec.analysis.cutoff_cost import choose_and_measure
    from hvae_codec.encode.pipeline import encode_worker
    from hvae_codec.report.encoded import find_ranking

    batch_size, seed, images = options.batch_size, options.seed, 0 if share.number else measured
    advice = "The same command goes on where it stopped."
    with interruptible(advice), stages(quiet=not processes.is_main) as stage:
        stats, note = processes.run_on_main(lambda: find_ranking(model, source, batch_size, seed, stage))
        # Before the long part, so that its price is known and nothing is left to fail once the store stands.
        kept, sentences = processes.run_on_main(
            lambda: choose_and_measure(wish, model, stats, source, batch_size, seed, stage, images)
        )
        if processes.is_main:
            console().print(note, *sentences, sep="\n")
        return encode_worker(
            model,
            source.split(split),
            store,
            share,
            mask=kept,
            codec=codec,
            stats=stats,
            options=options,
            progress=stage("Encoding"),
        )


def _report(written: EncodedStore | None, source: ImageSource, store: str, worker: Worker | None) -> None:
    from hvae_codec.report.encoded import store_table, worker_sentence

    if written is not None:
        report_source(source)
        console().print(store_table(written))
    elif worker is not None:
        console().print(worker_sentence(store, worker))
