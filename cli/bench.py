"""`hvae-codec bench`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hvae_codec.config import LATEST_RUN
from hvae_codec.errors import UsageError

from .analyze_kl import check_split
from .cutoffs import joined, parse_cutoffs
from .display import (
    console,
    interruptible,
    print_json,
    report_source,
    report_splits,
    say,
    show,
    stages,
    warn_unfinished,
)
from .options import AsJson, Data, DeviceOption, Seed, SplitName, Val, torch_device
from .source_options import SourceOptions, takes_source_options

if TYPE_CHECKING:
    from hvae_codec.analysis.bench import Bench, ModelCurve, OpenedStore
    from hvae_codec.data.sources import ImageSource
    from hvae_codec.data.training_and_held_out import TrainingAndHeldOut
    from hvae_codec.encode.encoded_store import EncodedStore
    from hvae_codec.model.hvae import HVAE
    from hvae_codec.progress import Stage
    from hvae_codec.prune.cutoffs import CutoffSpec

DEFAULT_KEEPS = ["3%,100%"]
"""Of a pruned run, what it has of those, and all that is left."""
DEFAULT_STEPS, DEFAULT_QUALITIES = ["0.5,1,2,4"], ["10,30,50,70,90"]

Model = Annotated[
    Path | None, typer.Option("--model", help=f"Run whose model to measure.  [default: {LATEST_RUN}, if no --store]")
]
Stores = Annotated[
    list[str] | None,
    typer.Option("--store", help="A store of these images to measure, as encode wrote it; may be given several times."),
]
Keep = Annotated[
    list[str],
    typer.Option("--keep", help="Shares of the model's latent dimensions to keep, separated by commas, or none."),
]
Cutoff = Annotated[
    list[str] | None,
    typer.Option("--cutoff", help="KL cutoffs as well, bits per latent dimension, separated by commas."),
]
Masks = Annotated[
    list[Path] | None, typer.Option("--mask", help="A mask in a file as well; may be given several times.")
]
Steps = Annotated[
    list[str],
    typer.Option("--step", help="Quantiser steps of the model, in posterior standard deviations, separated by commas."),
]
Qualities = Annotated[
    list[str],
    typer.Option("--quality", help="Qualities of JPEG, WebP, AVIF and JPEG XL, 1 to 100, separated by commas."),
]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", min=1, help="Images at once (64, or fewer if they are larger than 256 pixels)."),
]
Split = Annotated[SplitName, typer.Option("--split", help="Images to measure: those of one split, or all.")]
Images = Annotated[int, typer.Option("--images", min=1, help="Images to measure at most, evenly spaced.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", help="Folder for table and plot (RUN/analysis; of stores alone, nothing is written)."),
]


@takes_source_options
def command(
    data: Data,
    source_options: SourceOptions,
    model: Model = None,
    store: Stores = None,
    keep: Keep = DEFAULT_KEEPS,
    cutoff: Cutoff = None,
    mask: Masks = None,
    step: Steps = DEFAULT_STEPS,
    quality: Qualities = DEFAULT_QUALITIES,
    split: Split = SplitName.val,
    val: Val = None,
    images: Images = 256,
    out: Out = None,
    as_json: AsJson = False,
    device: DeviceOption = "auto",
    batch_size: BatchSize = None,
    seed: Seed = 0,
) -> None:
    """Compare a model, or stores, with PNG, JPEG, WebP, AVIF and JPEG XL on your own images.

    Every held-out image is encoded and decoded by each codec, as the model sees it: bytes and bits/dim on disk, without
    and with the headers of files, PSNR, SSIM, and images per second of one core. Writes bench.csv, bench.json, a plot,
    and a section of the report.html that analyze-kl left. Codecs that Pillow lacks are left out and named.
    """
    from hvae_codec.analysis.bench import bench, held_by
    from hvae_codec.cpu import reuse_freed_memory
    from hvae_codec.encode.encoded_store import open_store
    from hvae_codec.model.checkpoint import load_model

    specs = parse_cutoffs(
        "" if keep == ["none"] else joined(keep), joined(cutoff), "", mask or (), is_default=keep == DEFAULT_KEEPS
    )
    steps, qualities = parse_steps(joined(step)), parse_qualities(joined(quality))
    check_split(split, val)
    run = Path(LATEST_RUN) if model is None and not store else model
    if run is not None and not specs:
        raise UsageError("no cutoff is asked for; give --keep, --cutoff or --mask")
    reuse_freed_memory()
    hvae = None if run is None else load_model(run, torch_device(device))
    opened = [open_store(path) for path in store or ()]
    folder = _folder(out, hvae, val or data)
    sources = _open(data, val, hvae, opened, source_options)
    chosen = held_by(sources.split(split.value), opened).evenly(images)
    with interruptible("No table was written."), stages() as stage:
        curve = None if hvae is None else _curve(hvae, sources, specs, steps, batch_size, seed, stage)
        stores = [_with_decoder(each, device) for each in opened]
        found = bench(chosen, curve, stores, qualities=qualities, batch_size=batch_size, progress=stage("Comparing"))
    report_source(chosen)
    _write(found, folder, as_json)


def parse_steps(text: str) -> list[float]:
    """Read steps separated by commas.

    >>> parse_steps("0.5,1")
    [0.5, 1.0]

    Raises `UsageError` if one is no number above 0.
    """
    return [_parse_step(part) for part in text.split(",")]


def _parse_step(text: str) -> float:
    try:
        step = float(text)
    except ValueError:
        step = math.nan
    if not (math.isfinite(step) and step > 0):
        raise UsageError(f"--step is {text!r}; give numbers above 0, separated by commas, such as 0.5,1,2")
    return step


def parse_qualities(text: str) -> list[int]:
    """Read qualities separated by commas.

    >>> parse_qualities("30,75")
    [30, 75]

    Raises `UsageError` if one is no number from 1 to 100.
    """
    wrong = [part for part in text.split(",") if not (part.isdecimal() and 1 <= int(part[:4]) <= 100)]
    if wrong:
        raise UsageError(f"--quality is {wrong[0]!r}; give numbers from 1 to 100, separated by commas, such as 30,75")
    return [int(part) for part in text.split(",")]


def _folder(out: Path | None, model: HVAE | None, data: str) -> Path | None:
    """Choose the folder to write to, and check that it can be."""
    from hvae_codec.analysis.ranking_file import FOLDER
    from hvae_codec.report.bench import check_bench_folder

    folder = out or (model.run / FOLDER if model is not None and model.run else None)
    if folder is not None:
        check_bench_folder(folder, data)
    return folder


def _open(
    data: str, val: str | None, model: HVAE | None, stores: list[EncodedStore], source_options: SourceOptions
) -> TrainingAndHeldOut:
    """Open the images as those of the run, or else of the first store."""
    from hvae_codec.config import config_from_dict
    from hvae_codec.data.training_and_held_out import TrainingAndHeldOut

    def opened(path: str) -> ImageSource:
        if model is not None:
            return source_options.open_for_run(path, model.config, model.run)
        config = config_from_dict({"model": stores[0].config}).model
        return source_options.open_for_store(path, config, str(stores[0].path))

    if model is not None:
        warn_unfinished(model)
    other = None if val is None else opened(val)
    images = TrainingAndHeldOut(opened(data), other)
    report_splits(images, None if model is None else model.run)
    return images


def _curve(
    model: HVAE,
    images: TrainingAndHeldOut,
    specs: list[CutoffSpec],
    steps: list[float],
    batch_size: int | None,
    seed: int,
    stage: Stage,
) -> ModelCurve:
    """Find the masks, by the ranking that the run has, or one that is measured and kept there."""
    from hvae_codec.analysis.bench import ModelCurve
    from hvae_codec.analysis.ranking_file import find_ranking
    from hvae_codec.prune.cutoffs import fitting, merge_equal
    from hvae_codec.report.cutoff_sentences import ranking_sentence

    specs = fitting(specs, model)
    for spec in specs:
        spec.check(model)
    ranking = find_ranking(model, images, batch_size, seed, stage)
    say(ranking_sentence(ranking))
    stats = ranking.stats
    cutoffs = merge_equal([cutoff for spec in specs if (cutoff := spec.cutoff(model, stats)) is not None])
    return ModelCurve(model=model, stats=stats, masks={each.rule: each.mask for each in cutoffs}, steps=steps)


def _with_decoder(store: EncodedStore, device: str) -> OpenedStore:
    from hvae_codec.analysis.bench import OpenedStore

    return OpenedStore(store, store.load_decoder(torch_device(device)))


def _write(found: Bench, folder: Path | None, as_json: bool) -> None:
    from hvae_codec.report.bench import bench_data, bench_table, save_bench

    written = {} if folder is None else save_bench(found, folder)
    data = bench_data(found)
    if as_json:
        print_json(data | {"files": written})
        return
    show(bench_table(found), *data["sentences"])
    for name, path in written.items():
        console().print(f"{name}: {path}", soft_wrap=True)
