"""`hvae-codec prune`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hvae_codec.errors import UsageError

from . import prune_options as option
from . import train_options
from .cutoffs import parse_cutoff, parse_cutoffs, parse_share
from .display import (
    CONTINUES,
    console,
    interruptible,
    report_sources,
    report_splits,
    show,
    stages,
    warn,
    warn_of_copies,
)
from .distributed_session import distributed_session
from .options import LATEST_RUN, BatchSize, Data, DeviceOption, GraphName, Model, Val
from .source_options import SourceOptions, takes_source_options
from .training_display import training_display

if TYPE_CHECKING:
    from torch import Tensor

    from hvae_codec.config import Config
    from hvae_codec.data.training_and_held_out import TrainingAndHeldOut
    from hvae_codec.distributed import DistributedContext
    from hvae_codec.fine_tune.comparison import Comparison
    from hvae_codec.fine_tune.plan import PrunePlan
    from hvae_codec.prune.cutoffs import CutoffSpec
    from hvae_codec.train.loop import TrainOptions


@takes_source_options
def command(
    context: typer.Context,
    data: Data,
    source_options: SourceOptions,
    keep: option.Keep = "",
    cutoff: option.Cutoff = "",
    tolerance: option.Tolerance = "",
    mask: option.Mask = None,
    schedule: option.Schedule = "",
    codes: option.Codes = False,
    collapse: option.Collapse = option.CollapseName.mean,
    slim: option.Slim = None,
    steps: option.Steps = None,
    share: option.Share = "30%",
    settings: option.Settings = None,
    control: option.Control = False,
    val: Val = None,
    model: Model = LATEST_RUN,
    out: option.Out = None,
    save_every: train_options.SaveEvery = 500,
    keep_states: train_options.KeepStates = 3,
    eval_every: train_options.EvalEvery = 500,
    validation_images: train_options.ValidationImages = 800,
    log_every: train_options.LogEvery = 20,
    max_skips: train_options.MaxSkips = 100,
    tensorboard: train_options.Tensorboard = True,
    workers: train_options.Workers = None,
    allow_other_data: train_options.AllowOtherData = False,
    graph: train_options.Graph = GraphName.auto,
    deterministic: train_options.Deterministic = False,
    device: DeviceOption = "auto",
    batch_size: BatchSize = None,
    seed: train_options.RunSeed = None,
) -> None:
    """Prune a run's model and train what is left, so that it costs little; writes a run of its own.

    A mask made afterwards is done to a model; here it learns to do without. The new run knows what was pruned: encode,
    analyze-kl, evaluate and sample use what is left, and shares stay those of the unpruned model's dimensions. Ends
    with a table of before and after. Several processes: torchrun --nproc-per-node N -m hvae_codec prune ...
    """
    from hvae_codec.fine_tune.plan import PrunePlan

    cutoffs = _cutoffs(keep, cutoff, tolerance, mask, schedule, codes)
    how: Any = {"collapse": collapse.value, "codes": codes, "slim": slim, "control": control}
    how |= {"steps": steps, "share": parse_share(share), "settings": settings or ()}
    plan = PrunePlan(cutoffs=cutoffs, **how, batch_size=batch_size, seed=seed or 0)
    options = train_options.chosen_options(context)
    _prune(PruneRequest(data, val, model, out, plan, options, source_options), device)


@dataclass(frozen=True)
class PruneRequest:
    """What a user asks for, read from the command line."""

    data: str
    val: str | None
    model: Path
    out: Path | None
    plan: PrunePlan
    options: TrainOptions
    source_options: SourceOptions


def _cutoffs(keep: str, cutoff: str, tolerance: str, mask: Path | None, schedule: str, codes: bool) -> list[CutoffSpec]:
    from hvae_codec.prune.cutoffs import CutoffSpec

    if schedule and (keep or cutoff or tolerance or mask):
        raise UsageError("--schedule ends with what is kept; leave out --keep, --cutoff, --tolerance and --mask")
    if schedule:
        return parse_cutoffs(schedule)[::-1]
    if not (keep or cutoff or tolerance or mask) and codes:
        return [CutoffSpec()]  # of a pruned run, all that is left
    if not (keep or cutoff or tolerance or mask):
        raise UsageError("nothing says what to keep; give --keep, such as --keep 1%")
    return [parse_cutoff(keep, cutoff, tolerance, mask)]


def _prune(request: PruneRequest, device: str) -> None:
    from hvae_codec.cpu import reuse_freed_memory
    from hvae_codec.fine_tune.comparison import compare
    from hvae_codec.fine_tune.prune import prune
    from hvae_codec.model.checkpoint import find_run, load_run_config
    from hvae_codec.train.run_folder import unfinished_sentence

    reuse_freed_memory()
    with interruptible(CONTINUES), distributed_session(device) as processes:
        run = find_run(request.model)
        out, config = request.out or run.with_name(f"{run.name}-pruned"), load_run_config(run).model
        images = request.source_options.open_training_and_held_out(request.data, request.val, config, run)
        if processes.is_main:
            if sentence := unfinished_sentence(run):
                warn(sentence)
            report_splits(images, run)
            warn_of_copies(images)
        train = _Trainer(images, request.options, processes)
        show_stages = partial(stages, quiet=not processes.is_main)
        pruned = prune(run, out, images, request.plan, train, show_stages, processes=processes)
        with show_stages() as stage:
            found = processes.run_on_main(lambda: compare(pruned, images, request.plan, stage, processes.device))
        if processes.is_main:
            report_sources(images)
            _report(found, out)


@dataclass(frozen=True)
class _Trainer:
    """Trains the run of a stage, and shows how that goes."""

    images: TrainingAndHeldOut
    options: TrainOptions
    processes: DistributedContext

    def __call__(self, run: Path, config: Config, seed: int, initial: Mapping[str, Tensor] | None) -> None:
        from hvae_codec.cpu import tuned_for_training
        from hvae_codec.train.loop import train
        from hvae_codec.train.progress import ProgressReporter

        is_main = self.processes.is_main
        with tuned_for_training(), training_display(quiet=not is_main) as display:
            steps, size = config.train.steps, config.train.batch_size
            reporter = ProgressReporter(steps, size, display.show, display.every_seconds)
            result = train(
                run,
                config,
                self.images.training,
                self.images.held_out,
                replace(self.options, seed=seed),
                reporter if is_main else None,
                display.reading,
                display.warn,
                self.processes,
                lambda step: display.say(f"{run}: from step {step:,} to {steps:,}"),
                initial,
            )
        if result.stopped:  # in the last step, and there is more to do
            raise KeyboardInterrupt(result.stopped)


def _report(found: Comparison, out: Path) -> None:
    from hvae_codec.report.pruning import comparison_sentences, comparison_table, save_comparison

    written = save_comparison(found, out)
    show(comparison_table(found), *comparison_sentences(found))
    for name, path in written.items():
        console().print(f"{name}: {path}", soft_wrap=True)
