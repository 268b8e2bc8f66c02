"""`hvae-codec train`."""

from __future__ import annotations

import math
import os
import shlex
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hvae_codec.errors import UsageError

from . import train_options as option
from .display import console, interruptible, report_sources, report_splits, warn_of_copies
from .dry_run import check_alone, look
from .options import LATEST_RUN, CheckBytes, Data, DeviceOption, GraphName, Val, torch_device
from .source_options import KNOWN_TO_RUN as PREPROCESSING
from .source_options import SourceOptions, takes_source_options
from .training_display import training_display

if TYPE_CHECKING:
    from hvae_codec.config import Config
    from hvae_codec.data.sources import ImageSource
    from hvae_codec.distributed import DistributedContext
    from hvae_codec.progress import Stage
    from hvae_codec.train.forecast import TrainForecast
    from hvae_codec.train.loop import TrainOptions, TrainResult

KNOWN_TO_RUN = {
    "data",
    "preset",
    "config",
    "settings",
    "steps",
    "precision",
    "checkpoint_activations",
    "compile_",
    "seed",
    *PREPROCESSING,
}
"""Parameters that the run stores, or that the command to continue has anyway."""


@dataclass(frozen=True)
class TrainRequest:
    """What a user asks for, read from the command line."""

    data: str
    val: str | None
    preset: str | None
    config: Path | None
    changes: list[str]
    """To the configuration, in the form of `--set`."""
    out: Path | None
    resume: bool
    seed: int | None
    source_options: SourceOptions
    dry_run: bool
    as_json: bool


@takes_source_options
def command(
    context: typer.Context,
    data: Data,
    source_options: SourceOptions,
    preset: option.Preset = None,
    config: option.ConfigFile = None,
    settings: option.Settings = None,
    val: Val = None,
    steps: option.Steps = None,
    precision: option.Precision = None,
    checkpoint_activations: option.CheckpointActivations = False,
    compile_: option.Compile = False,
    graph: option.Graph = GraphName.auto,
    deterministic: option.Deterministic = False,
    out: option.Out = None,
    resume: option.Resume = False,
    allow_other_data: option.AllowOtherData = False,
    check: CheckBytes = False,
    save_every: option.SaveEvery = 500,
    keep_states: option.KeepStates = 3,
    eval_every: option.EvalEvery = 500,
    validation_images: option.ValidationImages = 800,
    log_every: option.LogEvery = 20,
    max_skips: option.MaxSkips = 100,
    tensorboard: option.Tensorboard = True,
    workers: option.Workers = None,
    dry_run: option.DryRun = False,
    as_json: option.AsJson = False,
    device: DeviceOption = "auto",
    seed: option.RunSeed = None,
) -> None:
    """Train a model on images; Ctrl-C saves, and the same command with its --out, or --resume, continues.

    runs/latest is the last run with weights. Several processes: torchrun --nproc-per-node N -m hvae_codec train ...
    """
    options = option.chosen_options(context, seed=seed or 0, latest=LATEST_RUN)
    changes = _changes(settings, steps, precision, checkpoint_activations, compile_)
    if as_json and not dry_run:
        raise UsageError("--json is of what --dry-run says; give both, or leave it out")
    request = TrainRequest(data, val, preset, config, changes, out, resume, seed, source_options, dry_run, as_json)
    _run(context, request, options, device)


def _run(context: typer.Context, request: TrainRequest, options: TrainOptions, device: str) -> None:
    """Train in all processes that torchrun started; after Ctrl-C, say how to continue."""
    from hvae_codec.distributed import FailedElsewhere, init_distributed

    advice = None
    try:
        with init_distributed() as processes:
            processes = processes.on(torch_device(device))
            run = processes.run_on_main(lambda: _run_folder(request))
            wanted = processes.run_on_main(lambda: _configuration(request, run))
            if request.dry_run:
                check_alone(processes)
                _look(request, run, wanted, options, processes.device)
                return
            advice = _advice(context, request.data, run, processes)
            _train(request, run, wanted, options, processes)
    except FailedElsewhere as error:
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        with interruptible(advice):
            raise


def _train(
    request: TrainRequest, run: Path, wanted: Config, options: TrainOptions, processes: DistributedContext
) -> None:
    from hvae_codec.cpu import tuned_for_training
    from hvae_codec.train.loop import start_run, train
    from hvae_codec.train.progress import ProgressReporter

    images = request.source_options.open_training_and_held_out(request.data, request.val, wanted.model, run)
    training, validation = images.training, images.held_out
    config = processes.run_on_main(
        lambda: start_run(run, wanted, resume=request.resume, seed=request.seed, device=processes.device)
    )
    if processes.is_main:
        report_splits(images)
        warn_of_copies(images)
    with tuned_for_training(), training_display(quiet=not processes.is_main) as display:
        reporter = ProgressReporter(config.train.steps, config.train.batch_size, display.show, display.every_seconds)
        on_step = reporter if processes.is_main else None
        result = train(
            run,
            config,
            training,
            validation,
            options,
            on_step,
            display.reading,
            display.warn,
            processes,
            lambda step: display.say(f"{run}: from step {step:,} to {config.train.steps:,}"),
        )
    if processes.is_main:
        report_sources(images)
        _report(result, config, len(training), validation.evenly(options.validation_images))


def _look(request: TrainRequest, run: Path, wanted: Config, options: TrainOptions, device: str) -> None:
    """Show what the images are, and what training on them would take."""
    from hvae_codec.report.forecast import train_forecast_data, train_forecast_sentences
    from hvae_codec.train.forecast import forecast_training
    from hvae_codec.train.run_folder import origin_of_run, start_run
    from hvae_codec.train.state import steps_taken

    images = request.source_options.open_training_and_held_out(request.data, request.val, wanted.model, run)
    training, validation = images.training, images.held_out
    config = start_run(run, wanted, resume=request.resume, seed=request.seed, device=device)
    origin_of_run(run, training, validation, seed=options.seed, other_data=options.other_data)  # raises on other images
    report_splits(images)
    warn_of_copies(images)

    def forecast(_: Stage) -> TrainForecast:
        return forecast_training(config, training, device, steps_taken(run) or 0, options.graph)

    shown, skipping = (train_forecast_data, train_forecast_sentences), request.source_options.skip_unusable
    look(images, images.data, forecast, *shown, skipping=skipping, as_json=request.as_json)


def _changes(
    settings: list[str] | None,
    steps: int | None,
    precision: option.PrecisionName | None,
    checkpoint_activations: bool,
    compile_: bool,
) -> list[str]:
    """Write all changes to the configuration as `--set` has them: its own, and the options that stand for one."""
    changes = list(settings or [])
    changes += [f"train.steps={steps}"] if steps else []
    changes += [f"train.precision={precision.value}"] if precision else []
    changes += ["train.checkpoint_activations=true"] if checkpoint_activations else []
    changes += ["train.compile=true"] if compile_ else []
    return changes


def _run_folder(request: TrainRequest) -> Path:
    from hvae_codec.model.checkpoint import find_run

    preset, file, out, resume = request.preset, request.config, request.out, request.resume
    if preset and file:
        raise UsageError(f"--preset {preset} and --config {file} are both given; give one")
    if resume and (preset or file):
        raise UsageError("--resume continues with the run's own configuration; leave out --preset and --config")
    if out or resume:
        return out or find_run(LATEST_RUN, "--out")
    name = file.stem if file else preset or option.DEFAULT_PRESET
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def _configuration(request: TrainRequest, run: Path) -> Config:
    from hvae_codec.config import load_config, with_settings
    from hvae_codec.model.checkpoint import load_run_config
    from hvae_codec.presets import load_preset

    if request.resume:
        base = load_run_config(run)
    elif request.config:
        base = load_config(request.config)
    else:
        base = load_preset(request.preset or option.DEFAULT_PRESET)
    return with_settings(base, request.changes)


def _advice(context: typer.Context, data: str, run: Path, processes: DistributedContext) -> str | None:
    """Say what to type to continue an interrupted run; None if another process reports it."""
    if not processes.is_main:
        return None
    words = ["train", data, "--resume", "--out", str(run)]
    for parameter in context.command.params:
        name = str(parameter.name)
        source = context.get_parameter_source(name)
        if name in {*KNOWN_TO_RUN, "out", "resume"} or source is None or source.name != "COMMANDLINE":
            continue
        value = context.params[name]
        if isinstance(value, bool):
            words.append((parameter.opts if value else parameter.secondary_opts)[0])
        else:
            words += [parameter.opts[0], str(value)]
    return f"Continue with{_launcher(processes)} {shlex.join(words)}"


def _launcher(processes: DistributedContext) -> str:
    if processes.world_size == 1:
        return ": hvae-codec"
    several = int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1
    also = ", on every machine and with torchrun's other options as before" if several else ""
    return f"{also}: torchrun --nproc-per-node {processes.local_world_size} -m hvae_codec"


def _report(result: TrainResult, config: Config, training: int, validation: ImageSource) -> None:
    from hvae_codec.report.counts import count
    from hvae_codec.report.splits import image_kind

    elbo, model = result.validation, config.model
    nats = f" = {elbo.nelbo * math.log(2.0) * model.image_dims:.2f} nats" if model.output == "bernoulli" else ""
    if not result.steps_taken:
        console().print(
            f"{result.run} was finished before; to train it for longer give --resume --steps N", markup=False
        )
    steps = f"{count(result.step, 'step')} on {count(training, 'image')}"
    console().print(
        f"{result.run}: {steps} in {result.seconds / 60:.1f} minutes, {count(result.skipped, 'update')} skipped\n"
        f"{image_kind(validation.held_out)} NELBO {elbo.nelbo:.3f} bits/dim{nats} = reconstruction "
        f"{elbo.distortion:.3f} + KL {elbo.rate:.3f} ({count(len(validation), 'image')})",
        markup=False,
    )
