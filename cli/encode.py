"""`hvae-codec encode`."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hvae_codec.config import CHUNK_BYTES, ROW_GROUP_SIZE
from hvae_codec.errors import UsageError

from . import encode_options as option
from .cutoffs import parse_cutoff
from .display import (
    CONTINUES,
    console,
    interruptible,
    print_json,
    report_sources,
    report_splits,
    say,
    show,
    stages,
    warn,
    warn_unfinished,
)
from .dry_run import check_whole, look
from .engine_session import engine_session, own_device, parse_worker, refuse_torchrun
from .image_range import ImageRange, selected
from .options import (
    LATEST_RUN,
    AsJson,
    BatchSize,
    CheckBytes,
    Codec,
    CodecName,
    Count,
    CountName,
    Data,
    DeviceOption,
    Granularity,
    GranularityName,
    Graph,
    GraphName,
    Model,
    On,
    Seed,
    SplitName,
    Step,
    StepTolerance,
    Val,
    packing,
)
from .source_options import SourceOptions, takes_source_options
from .steps import parse_codec

if TYPE_CHECKING:
    from hvae_codec.analysis.cutoff_cost import ChosenCutoff
    from hvae_codec.analysis.encode_forecast import EncodeOutlook
    from hvae_codec.analysis.ranking_file import FoundRanking
    from hvae_codec.analysis.step_choice import AutoStep
    from hvae_codec.data.sources import ImageSource
    from hvae_codec.data.training_and_held_out import TrainingAndHeldOut
    from hvae_codec.encode.encoded_store import EncodedStore
    from hvae_codec.encode.pipeline import EncodeOptions
    from hvae_codec.model.hvae import HVAE
    from hvae_codec.progress import Stage
    from hvae_codec.prune.cutoffs import CutoffSpec
    from hvae_codec.store.metadata import Embedded
    from hvae_codec.store.quantiser import Codec as LatentCodec
    from hvae_codec.store.workers import Worker


@dataclass(frozen=True)
class EncodeRequest:
    """What a user asks for, read from the command line."""

    store: str
    split: SplitName
    images: str
    """Which of the split's images."""
    cutoff: CutoffSpec
    codec: LatentCodec | AutoStep
    evaluated_images: int | None
    """Held-out images to measure the cutoff's cost on; None for all."""
    options: EncodeOptions
    graph: GraphName
    on: str | None
    """Where row groups are worked on."""
    dry_run: bool
    as_json: bool


@takes_source_options
def command(
    data: Data,
    source_options: SourceOptions,
    store: option.Store,
    keep: option.Keep = "",
    cutoff: option.Cutoff = "",
    tolerance: option.Tolerance = "",
    mask: option.Mask = None,
    granularity: Granularity = GranularityName.variate,
    count: Count = CountName.dimensions,
    codec: Codec = CodecName.int,
    step: Step = "",
    step_tolerance: StepTolerance = "",
    code_bits: option.CodeBitsOption = option.CodeBits.auto,
    split: option.Split = SplitName.all,
    images: ImageRange = "all",
    val: Val = None,
    on: On = None,
    worker_option: option.WorkerOption = "",
    evaluate: option.Evaluate = "1000",
    row_group_size: option.Shard = ROW_GROUP_SIZE,
    chunk: option.Chunk = CHUNK_BYTES,
    embed: option.Embed = None,
    embed_model: option.EmbedModel = False,
    verify: option.Verify = False,
    check: CheckBytes = False,
    overwrite: option.Overwrite = False,
    dry_run: option.DryRun = False,
    as_json: AsJson = False,
    model: Model = LATEST_RUN,
    device: DeviceOption = "auto",
    batch_size: BatchSize = None,
    graph: Graph = GraphName.auto,
    seed: Seed = 0,
) -> None:
    """Encode images into a store of their most informative latents.

    Prints what this cutoff costs on held-out images and what the store takes on disk. The same command continues an
    interrupted encode. --on sends row groups to other processes, here or on other machines that see the same folders.
    Without a scheduler, run this command with --worker 0/N to N-1/N on these machines, in any order.
    """
    spec = parse_cutoff(keep, cutoff, tolerance, mask, granularity.value, count.value)
    how: Any = {"overwrite": overwrite, "row_group_size": row_group_size, "chunk_bytes": chunk, "verify": verify}
    how |= {"batch_size": batch_size, "evaluate": evaluate == "all", "seed": seed, "check": check, "device": device}
    options = _options(codec, code_bits, parse_embed(embed, embed_model), **how)
    evaluated, latents = parse_evaluate(evaluate), parse_codec(codec, step, step_tolerance)
    request = EncodeRequest(store, split, images, spec, latents, evaluated, options, graph, on, dry_run, as_json)
    _run(request, data, val, model, worker_option, source_options)


def _options(codec: CodecName, code_bits: option.CodeBits, embed: Embedded, **how: Any) -> EncodeOptions:
    from hvae_codec.encode.pipeline import EncodeOptions

    bits = None if code_bits == "auto" else int(code_bits)
    return EncodeOptions(packing=packing(codec), code_bits=bits, embed=embed, **how)


def _run(
    request: EncodeRequest,
    data: str,
    val: str | None,
    run: Path,
    worker_option: str,
    source_options: SourceOptions,
) -> None:
    from hvae_codec.cpu import reuse_freed_memory
    from hvae_codec.store.open_writer import check_location

    start = time.monotonic()
    _check_fitting(request)
    refuse_torchrun("encode")
    reuse_freed_memory()
    worker = parse_worker(worker_option)
    if request.dry_run:
        check_whole(worker_option)
    if not worker_option:
        check_location(request.store, request.options.overwrite)
    model = _load(request, run, worker)
    images = source_options.open_training_and_held_out(data, val, model.config, model.run)
    report_splits(images, model.run)
    wanted = selected(images, request.split, request.images)  # raises before anything is measured
    if request.dry_run:
        _look(request, model, images, wanted, source_options)
        return
    written = _encode(request, model, images, wanted, worker)
    if request.as_json:
        _print(request.store, written, images, wanted, worker, time.monotonic() - start)
    else:
        _report(written.store, images, request.store, worker)


def _check_fitting(request: EncodeRequest) -> None:
    """Raise `UsageError` if options do not go together, before anything is read."""
    from hvae_codec.encode.array_dtypes import check_code_bits
    from hvae_codec.encode.embedded_model import check_granularity
    from hvae_codec.store.quantiser import make_codec

    options = request.options
    check_granularity(options.embed, request.cutoff.granularity)  # of a mask in a file, encode_worker finds it out
    check_code_bits(make_codec(request.codec.name), options.packing, options.code_bits)


def _load(request: EncodeRequest, run: Path, worker: Worker) -> HVAE:
    from hvae_codec.model.checkpoint import load_model
    from hvae_codec.model.recorded import Recording

    model = load_model(run, own_device(request.options.device or "auto", request.on, worker))
    model.recording = Recording(request.graph.value, warn)
    if not worker.number:
        warn_unfinished(model)
    return model


@dataclass(frozen=True)
class _Written:
    """What an encode, or its worker, did."""

    store: EncodedStore | None
    """None if row groups of other workers are missing yet."""
    ranking: FoundRanking
    chosen: ChosenCutoff


def _encode(
    request: EncodeRequest, model: HVAE, images: TrainingAndHeldOut, wanted: ImageSource, worker: Worker
) -> _Written:
    from hvae_codec.analysis.cutoff_cost import choose_and_measure
    from hvae_codec.analysis.ranking_file import find_ranking
    from hvae_codec.encode.pipeline import encode_worker
    from hvae_codec.engine.tally import Tally
    from hvae_codec.model.worker_device import worker_device
    from hvae_codec.report.cutoff_sentences import choice_sentences, ranking_sentence

    tally, options = Tally(), request.options
    measured = 0 if worker.number else request.evaluated_images
    with interruptible(CONTINUES), engine_session(request.on) as engine, stages(tally=tally) as stage:
        device = worker_device(engine, options.device or "auto") if request.on else None
        options = replace(options, device=device)
        how: Any = {"stage": stage, "engine": engine, "device": device, "tally": tally}
        ranking = find_ranking(model, images, options.batch_size, options.seed, **how)
        # Before the long part: the user sees the price, and whatever can fail does so before the store is there.
        held_out = images.held_out
        how |= {"batch_size": options.batch_size, "seed": options.seed}
        how |= {"images": measured, "is_shared": worker.count > 1, "packing": options.packing}
        chosen = choose_and_measure(request.cutoff, model, ranking.stats, held_out, request.codec, **how)
        assert chosen.codec is not None
        sentences = [ranking_sentence(ranking), *choice_sentences(chosen)]
        (say if request.as_json else console().print)("\n".join(sentences))
        store = encode_worker(
            model,
            wanted,
            request.store,
            worker,
            mask=chosen.cutoff.mask,
            codec=chosen.codec.codec,
            stats=ranking.stats,
            options=options,
            engine=engine,
            tally=tally,
            comparing=stage("Comparing"),
            widening=stage("Rewriting"),
            progress=stage.continued("Encoding"),
            on_warning=warn,
        )
    return _Written(store, ranking, chosen)


def _look(
    request: EncodeRequest,
    model: HVAE,
    images: TrainingAndHeldOut,
    wanted: ImageSource,
    source_options: SourceOptions,
) -> None:
    """Show what the images are, and what encoding them would take."""
    from hvae_codec.analysis.encode_forecast import outlook_on_encode
    from hvae_codec.report.forecast import outlook_data, outlook_sentences

    def forecast(stage: Stage) -> EncodeOutlook:
        wish = request.cutoff, request.codec, request.options, request.evaluated_images
        return outlook_on_encode(model, images, wanted, *wish, stage)

    shown = (outlook_data, outlook_sentences)
    look(images, wanted, forecast, *shown, skipping=source_options.skip_unusable, as_json=request.as_json)


def parse_embed(embed: option.EmbedName | None, embed_model: bool) -> Embedded:
    """Read what the store is to carry of its model; `UsageError` if `--embed` and `--embed-model` say different things.

    >>> parse_embed(option.EmbedName.decoder, False), parse_embed(None, True)
    ('decoder', 'whole')
    """
    if embed_model and embed not in (None, option.EmbedName.whole):
        raise UsageError(f"--embed-model means --embed whole, and --embed is {embed.value}; leave one of the two out")
    if embed_model:
        return "whole"
    return embed.value if embed else ""


def parse_evaluate(text: str) -> int | None:
    """Read how many held-out images a cutoff's cost is measured on: 0 for `none`, None for `all`.

    >>> parse_evaluate("none"), parse_evaluate("1000"), parse_evaluate("all")
    (0, 1000, None)

    Raises `UsageError` if `text` is neither nor a number.
    """
    if text not in ("none", "all") and not re.fullmatch(r"[1-9]\d{0,17}", text):
        raise UsageError(f"--evaluate is {text!r}; give none, a number of images such as 1000, or all")
    return {"none": 0, "all": None}[text] if text in ("none", "all") else int(text)


def _report(written: EncodedStore | None, images: TrainingAndHeldOut, store: str, worker: Worker) -> None:
    from hvae_codec.report.about import store_table, worker_sentence

    if written is not None:
        report_sources(images)
        show(store_table(written))
    else:
        console().print(worker_sentence(store, worker))


def _print(
    path: str,
    written: _Written,
    images: TrainingAndHeldOut,
    wanted: ImageSource,
    worker: Worker,
    seconds: float,
) -> None:
    from hvae_codec.report.finished import encoded_data, unfinished_data

    report_sources(images)
    if written.store is not None:
        print_json(encoded_data(written.store, wanted, seconds, written.ranking, written.chosen))
    else:
        print_json(unfinished_data(path, worker, seconds))
