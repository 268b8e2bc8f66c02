"""`hvae-codec train`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress, TaskID

from hvae_codec.config import Config, load_config, with_settings
from hvae_codec.errors import UsageError

from .display import console, interruptible, progress_bar, report_source, report_unused
from .options import LATEST_RUN, Data, Device, DeviceOption, Seed, SkipBroken, torch_device

if TYPE_CHECKING:
    from hvae_codec.train.loop import OnStep, StepMetrics, TrainResult

DEFAULT_PRESET = "tiny32"


def command(
    data: Data,
    preset: Annotated[
        str | None, typer.Option("--preset", help=f"Configuration by name ({DEFAULT_PRESET}); see presets.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="Configuration file, .toml or .json.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change one value: train.batch_size=32, stage.variates=8, stage32.width=48."),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Updates in all.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the run (runs/PRESET-DATE).")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with --out, or with the last run, from its newest state.")
    ] = False,
    save_every: Annotated[int, typer.Option("--save-every", min=1, help="Steps between states.")] = 500,
    device: DeviceOption = Device.auto,
    seed: Seed = 0,
    skip_broken: SkipBroken = False,
) -> None:
    """Train a model on images; Ctrl-C saves, and --resume goes on.

    The run is a folder: config.json, model.safetensors (averaged weights, which all other commands use), metrics.csv,
    validation.csv and state/ for resuming. runs/latest points to the last one.
    """
    from hvae_codec.images import open_images
    from hvae_codec.model.checkpoint import find_run
    from hvae_codec.train.loop import TrainOptions, start_run, train

    name, wanted = _configuration(preset, config, settings or [], steps, resume)
    run = out or (find_run(LATEST_RUN) if resume else Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}")
    if resume:
        wanted = _resumed(run, steps)
    options = TrainOptions(seed=seed, save_every=save_every, device=torch_device(device), latest=LATEST_RUN)
    model = wanted.model
    source = open_images(data, size=model.image_size, channels=model.channels, skip_broken=skip_broken)
    wanted = start_run(run, wanted, resume=resume)
    training, held_out = source.split("train"), source.split("val")
    report_unused(len(source), training, held_out)
    advice = f"Go on with: hvae-codec train {data} --resume --out {run}"
    with interruptible(advice), flushed_denormals(), progress_bar("steps") as bar:
        task = bar.add_task("Training", total=wanted.train.steps, start=False)
        result = train(run, wanted, training, held_out, options, _shown(bar, task), _reading(bar, task))
    report_source(source)
    _report(result, wanted, len(training), len(held_out))


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Numbers too near 0 for normal floats are taken as 0: a tenth faster on CPUs, which handle them slowly."""
    import torch

    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _configuration(
    preset: str | None, file: Path | None, settings: list[str], steps: int | None, resume: bool
) -> tuple[str, Config]:
    from hvae_codec.presets import load_preset

    if preset and file:
        raise UsageError(f"--preset {preset} and --config {file} are both given; give one")
    if resume and (preset or file or settings):
        raise UsageError("--resume goes on with the run's own configuration; leave out --preset, --config and --set")
    name = file.stem if file else preset or DEFAULT_PRESET
    config = with_settings(load_config(file) if file else load_preset(name), settings)
    return name, _with_steps(config, steps)


def _with_steps(config: Config, steps: int | None) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, steps=steps or config.train.steps))


def _resumed(run: Path, steps: int | None) -> Config:
    from hvae_codec.model.checkpoint import load_run_config

    return _with_steps(load_run_config(run), steps)


def _reading(bar: Progress, task: TaskID) -> Callable[[int, int], None]:
    """Called while images are read into memory."""
    return lambda done, total: bar.update(task, description=f"Reading images, {done:,} of {total:,}")


def _shown(bar: Progress, task: TaskID) -> OnStep:
    """Called after each step: moves the bar and shows a running average of the NELBO."""
    smooth: list[float] = []

    def on_step(metrics: StepMetrics) -> None:
        if not smooth:
            bar.start_task(task)
        smooth.append(metrics.nelbo)
        del smooth[:-50]
        average = sum(smooth) / len(smooth)
        bar.update(task, completed=metrics.step, description=f"Training, NELBO {average:.3f} bits/dim")

    return on_step


def _report(result: TrainResult, config: Config, training: int, held_out: int) -> None:
    elbo, model = result.validation, config.model
    nats = f" = {elbo.nelbo * math.log(2.0) * model.image_dims:.2f} nats" if model.output == "bernoulli" else ""
    console().print(
        f"{result.run}: {result.step:,} steps on {training:,} images in {result.seconds / 60:.1f} minutes, "
        f"{result.skipped} updates skipped\n"
        f"held-out NELBO {elbo.nelbo:.3f} bits/dim{nats} = reconstruction {elbo.distortion:.3f} + KL {elbo.rate:.3f} "
        f"({held_out:,} images)"
    )
