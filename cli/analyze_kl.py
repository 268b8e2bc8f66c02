"""`hvae-codec analyze-kl`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hvae_codec.errors import UsageError

from .cutoffs import joined, parse_cutoffs
from .display import (
    console,
    interruptible,
    report_sources,
    report_splits,
    show,
    stages,
    warn,
    warn_of_copies,
    warn_unfinished,
)
from .engine_session import engine_session, refuse_torchrun
from .options import (
    LATEST_RUN,
    BatchSize,
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
    check_on,
    packing,
    torch_device,
)
from .source_options import SourceOptions, takes_source_options
from .steps import parse_codec

if TYPE_CHECKING:
    from hvae_codec.analysis.plan import AnalysisPlan, AnalysisResult
    from hvae_codec.data.training_and_held_out import TrainingAndHeldOut
    from hvae_codec.model.hvae import HVAE


DEFAULT_KEEPS = ["1%,2%,3%,5%,7%,10%,20%,100%"]
"""Of a pruned run, those that it has, and all that is left."""

Keep = Annotated[
    list[str],
    typer.Option("--keep", help="Shares of the latent dimensions to try, separated by commas, or none."),
]
Cutoff = Annotated[
    list[str] | None,
    typer.Option("--cutoff", help="KL cutoffs to try as well, bits per latent dimension, separated by commas."),
]
Tolerance = Annotated[
    list[str] | None,
    typer.Option("--tolerance", help="Find the smallest keep whose NELBO is worse by at most this, such as 0.5%."),
]
Masks = Annotated[
    list[Path] | None, typer.Option("--mask", help="A mask in a file to try as well; may be given several times.")
]
Split = Annotated[
    SplitName,
    typer.Option(
        "--split",
        help="Images that the table is of: those of one split, or all. If it is not val, the ranking that the run has "
        "is taken, or else one of the training images.",
    ),
]
Images = Annotated[
    int, typer.Option("--images", min=1, help="Images for the ranking, and images for the table, at most.")
]
Pictures = Annotated[
    int, typer.Option("--pictures", min=1, help="Images that are also encoded, decoded and compared, at most.")
]
Out = Annotated[
    Path | None, typer.Option("--out", help="Folder for the page, tables, pictures and masks (RUN/analysis).")
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Store the ranking in the run even if it replaces one of more images."),
]


@dataclass(frozen=True)
class AnalyzeRequest:
    """Where to measure, and where results go, read from the command line."""

    data: str
    val: str | None
    source_options: SourceOptions
    model: Path
    out: Path | None
    overwrite: bool
    device: str
    graph: GraphName
    on: str | None
    """Where batches are worked on."""


@takes_source_options
def command(
    data: Data,
    source_options: SourceOptions,
    keep: Keep = DEFAULT_KEEPS,
    cutoff: Cutoff = None,
    tolerance: Tolerance = None,
    mask: Masks = None,
    granularity: Granularity = GranularityName.variate,
    count: Count = CountName.dimensions,
    split: Split = SplitName.val,
    val: Val = None,
    images: Images = 1000,
    pictures: Pictures = 256,
    out: Out = None,
    overwrite: Overwrite = False,
    codec: Codec = CodecName.int,
    step: Step = "",
    step_tolerance: StepTolerance = "",
    model: Model = LATEST_RUN,
    device: DeviceOption = "auto",
    batch_size: BatchSize = None,
    graph: Graph = GraphName.auto,
    on: On = None,
    seed: Seed = 0,
) -> None:
    """Rank latent dimensions by KL, and show what keeping only the best costs.

    Variates are ranked by their KL on training images. The table is of held-out images (those of --val PATH or, with
    --split, of another split): negative ELBO and its change in bits/dim; PSNR, bytes and distortion of images really
    encoded and decoded at that cutoff, with the quantiser step found for it. Writes report.html, the same as tables and
    pictures with more columns, the masks, and the ranking and steps, which encode reads. With --on, other processes
    compute the same figures, to the last bit. If the run has a ranking of more images, that stays unless --overwrite.
    """
    from hvae_codec.analysis.plan import AnalysisPlan

    check_split(split, val)
    asked: Any = (
        "" if keep == ["none"] else joined(keep),
        joined(cutoff),
        joined(tolerance),
        mask or (),
        granularity.value,
        count.value,
    )
    cutoffs = parse_cutoffs(*asked, is_default=keep == DEFAULT_KEEPS)
    latents, chunks = parse_codec(codec, step, step_tolerance), packing(codec)
    measured: Any = {"images": images, "pictures": pictures, "split": split.value}
    plan = AnalysisPlan(cutoffs=cutoffs, codec=latents, packing=chunks, batch_size=batch_size, seed=seed, **measured)
    _analyze(AnalyzeRequest(data, val, source_options, model, out, overwrite, device, graph, on), plan)


def check_split(split: SplitName, val: str | None) -> None:
    """Raise `UsageError` if held-out images of their own are given, and another split of DATA is to be measured."""
    if val is not None and split != SplitName.val:
        raise UsageError(f"--val {val} is what the table is of, and so is --split {split.value}; leave one of them out")


def _analyze(request: AnalyzeRequest, plan: AnalysisPlan) -> None:
    from hvae_codec.analysis.plan import run_analysis
    from hvae_codec.analysis.ranking_file import FOLDER
    from hvae_codec.cpu import reuse_freed_memory
    from hvae_codec.engine.tally import Tally
    from hvae_codec.model.worker_device import worker_device
    from hvae_codec.report.analysis_files import check_folder

    refuse_torchrun("analyze-kl")
    check_on(request.on)
    reuse_freed_memory()
    hvae = _load(request)
    run = hvae.run or request.model
    folder = request.out or run / FOLDER
    check_folder(folder, request.data, *([request.val] if request.val else []))
    images = request.source_options.open_training_and_held_out(request.data, request.val, hvae.config, hvae.run)
    report_splits(images, hvae.run)
    tally = Tally()
    with interruptible("No table was written."):
        warn_of_copies(images)
        with engine_session(request.on) as engine, stages(tally=tally) as stage:
            kind = worker_device(engine, request.device) if request.on else None
            result = run_analysis(hvae, images, plan, stage, engine, kind, tally)
    _write(result, folder, run, images, request.overwrite)


def _load(request: AnalyzeRequest) -> HVAE:
    from hvae_codec.model.checkpoint import load_model
    from hvae_codec.model.recorded import Recording

    model = load_model(request.model, "cpu" if request.on else torch_device(request.device))
    model.recording = Recording(request.graph.value, warn)
    warn_unfinished(model)
    return model


def _write(result: AnalysisResult, folder: Path, run: Path, images: TrainingAndHeldOut, overwrite: bool) -> None:
    from hvae_codec.report.analysis_files import analysis_sentences, save_analysis
    from hvae_codec.report.cutoffs import cutoff_table
    from hvae_codec.report.groups import group_rich_table, group_table

    written = save_analysis(result, folder, run, overwrite=overwrite)
    report_sources(images)
    groups = group_table(result.analysis.stats, result.image_dims)
    show(group_rich_table(groups), cutoff_table(result.analysis.table, result.about), *analysis_sentences(result))
    for name, path in written.items():
        console().print(f"{name}: {path}", soft_wrap=True)
