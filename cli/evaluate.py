"""`hvae-codec evaluate`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .display import console, interruptible, report_source, report_splits, show, stages, warn_unfinished
from .engine_session import engine_session
from .options import (
    LATEST_RUN,
    AsJson,
    BatchSize,
    Data,
    DeviceOption,
    Model,
    On,
    Seed,
    SplitName,
    check_on,
    torch_device,
)
from .source_options import SourceOptions, takes_source_options

if TYPE_CHECKING:
    from hvae_codec.analysis.evaluation import Evaluation

Split = Annotated[SplitName, typer.Option("--split", help="Images to evaluate: those of one split, or all.")]
Images = Annotated[
    int | None, typer.Option("--images", min=1, help="Images to evaluate at most, evenly spaced (all of them).")
]
Samples = Annotated[
    int,
    typer.Option(
        "--samples", min=1, help="Posterior samples per image; 2 or more also give the importance-weighted bound."
    ),
]


@takes_source_options
def command(
    data: Data,
    source_options: SourceOptions,
    split: Split = SplitName.val,
    images: Images = None,
    samples: Samples = 1,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write the figures of every image to this file.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a --csv file that is there.")] = False,
    as_json: AsJson = False,
    model: Model = LATEST_RUN,
    device: DeviceOption = "auto",
    batch_size: BatchSize = None,
    on: On = None,
    seed: Seed = 0,
) -> None:
    """Measure a model on held-out images, with standard errors.

    Shows NELBO, rate and distortion in bits/dim, PSNR and SSIM of reconstructions from the posterior's mean (with all
    latents), and the active latent groups. With --samples K, also the importance-weighted bound on -log p(x), which is
    tighter than the NELBO. With --on, other processes compute the same figures, to the last bit.
    """
    from hvae_codec.analysis.evaluation import evaluate
    from hvae_codec.cpu import reuse_freed_memory
    from hvae_codec.data.training_and_held_out import TrainingAndHeldOut
    from hvae_codec.engine.tally import Tally
    from hvae_codec.model.checkpoint import load_model
    from hvae_codec.model.worker_device import worker_device
    from hvae_codec.report.evaluation import check_image_csv, save_image_csv

    check_on(on)
    if csv is not None:
        check_image_csv(csv, overwrite=overwrite)
    reuse_freed_memory()
    hvae = load_model(model, "cpu" if on else torch_device(device))
    warn_unfinished(hvae)
    source = source_options.open_for_run(data, hvae.config, hvae.run)
    chosen = source.split(split.value)
    report_splits(TrainingAndHeldOut(source), hvae.run)
    chosen = chosen if images is None else chosen.evenly(images)
    tally = Tally()
    with interruptible("Nothing was written."), engine_session(on) as engine, stages(tally=tally) as stage:
        work: dict[str, Any] = {"progress": stage("Evaluating"), "engine": engine, "tally": tally}
        work["device"] = worker_device(engine, device) if on else None
        found = evaluate(hvae, chosen, samples=samples, batch_size=batch_size, seed=seed, **work)
    if csv is not None:
        save_image_csv(csv, found)
    report_source(source)
    about = {"model": str(hvae.run or model), "data": data, "split": split.value, "seed": seed}
    _show(found, about, csv, as_json)


def _show(found: Evaluation, about: Mapping[str, Any], csv: Path | None, as_json: bool) -> None:
    from hvae_codec.report.evaluation import evaluation_data, evaluation_table

    if as_json:
        print(json.dumps(evaluation_data(found, about), indent=2))
        return
    show(evaluation_table(found))
    if csv is not None:
        console().print(f"Every image: {csv}")
