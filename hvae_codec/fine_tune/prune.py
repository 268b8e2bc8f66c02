"""Prunes the model of a run and trains what is left, in one stage or in several, each ranked anew before it is pruned.

    RUN ─ rank ─> mask ─> OUT/stages/1 ─ rank ─> mask ─> OUT/stages/2 ─ rank ─> mask ─> OUT

Each folder is a run, with all that `train` promises: killed at any moment, the same call continues where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ..analysis.cutoff_cost import choose_cutoff
from ..analysis.ranking_file import find_ranking
from ..config import CONFIG_FILE, Config, PruningConfig, with_settings
from ..data.sources import ImageSource
from ..distributed import DistributedContext
from ..errors import ModelError, UsageError
from ..model.checkpoint import keep_weights, load_model, load_run_config, model_hash
from ..model.hvae import HVAE
from ..model.precision import resolve_precision
from ..progress import Stage
from ..prune.cutoffs import CutoffSpec
from ..prune.kl_stats import KLStats
from ..prune.mask import LatentMask
from ..train.run_folder import check_free, check_same
from ..train.state import has_state
from .plan import PrunePlan
from .pruned_model import kept_numbers, left_of, pruned_config, pruned_weights
from .schedule import fine_tuning_config, share_of_training, stage_steps
from .slim_run import slim_run

STAGES_FOLDER, CONTROL_FOLDER = "stages", "control"
"""Runs beside the pruned one, in its folder: those on the way to it, and the whole model trained for as long."""


class Trainer(Protocol):
    """Trains a run; it shows how that goes."""

    def __call__(self, run: Path, config: Config, initial: Mapping[str, Tensor] | None) -> None:
        """Train `config` in the folder `run`, from its newest state or, if it has none, from the weights `initial`."""


@dataclass(frozen=True)
class PrunedRun:
    """A run that was pruned, and what it can be compared with."""

    run: Path
    unpruned: Path
    kept_hash: str  # of the unpruned run's weights that were pruned
    kept: tuple[str, ...]  # of each latent group, the unpruned model's variates that are left
    rule: str  # what was asked for
    control: Path | None  # the whole model, trained for as long


def prune(
    run: Path,
    out: Path,
    source: ImageSource,
    plan: PrunePlan,
    train: Trainer,
    stage: Stage,
    *,
    processes: DistributedContext | None = None,
) -> PrunedRun:
    """Prune the model of `run` as `plan` says, and train what is left in `out`.

    Masks are of rankings on training images of `source`; each stage has one of its own, and nothing is ranked while a
    stage is trained. Of several `processes`, the first one ranks and writes. Raises `ModelError` if `out` is something
    else, or was begun with another plan; `UsageError` if nothing can be kept that way; and what training raises.
    """
    return _Pruning(run, out, source, plan, train, stage, processes or DistributedContext()).run_all()


@dataclass
class _Pruning:
    """A pruning at work."""

    run: Path
    out: Path
    source: ImageSource
    plan: PrunePlan
    train: Trainer
    stage: Stage
    processes: DistributedContext

    def __post_init__(self) -> None:
        self.device, self.on_main = self.processes.device, self.processes.run_on_main

    def run_all(self) -> PrunedRun:
        """Go through all stages, then make what is to be compared."""
        plan = self.plan
        self.on_main(lambda: check_free(self.out, beside=(STAGES_FOLDER, CONTROL_FOLDER)))
        base = self.base = self.unpruned()
        self.base_config, self.base_hash = load_run_config(self.run), model_hash(base)
        total = plan.steps or share_of_training(self.run, self.base_config, plan.share)
        model = base
        for number, (spec, steps) in enumerate(zip(plan.cutoffs, stage_steps(total, len(plan.cutoffs)), strict=True)):
            folder = self.folder(number)
            self.train_stage(folder, model, spec, steps)
            model = load_model(folder, self.device)
        assert model.pruning is not None
        if plan.ends_slim and not model.config.is_slim:
            self.on_main(lambda: slim_run(folder, self.out))
        control = self.train_control(base, total) if plan.control else None
        return PrunedRun(self.out, self.run, self.base_hash, model.pruning.kept, model.pruning.rule, control)

    def unpruned(self) -> HVAE:
        """Load the model to prune: with the weights that an earlier call of this began with, if there was one."""
        first = self.folder(0)
        saved = self.saved(first)
        begun = saved.pruning if saved else None
        model = load_model(self.run, self.device, kept=begun.model_hash if begun else "")
        if begun and begun.model_hash != model_hash(model):
            raise ModelError(
                f"{first} was begun with model {begun.model_hash[:12]}, and that of {self.run} is "
                f"{model_hash(model)[:12]} by now; give another --out"
            )
        return model

    def folder(self, stage: int) -> Path:
        """Return the folder of a stage's run: `out` of the last one, unless that is made slim afterwards."""
        plan = self.plan
        is_last = stage == len(plan.cutoffs) - 1
        made_slim = plan.ends_slim and plan.collapse == "sample"
        return self.out if is_last and not made_slim else self.out / STAGES_FOLDER / str(stage + 1)

    def saved(self, folder: Path) -> Config | None:
        """Read the configuration of a run that was begun, as the first process sees it; None if it was not."""
        return self.on_main(lambda: load_run_config(folder) if (folder / CONFIG_FILE).is_file() else None)

    def train_stage(self, folder: Path, model: HVAE, spec: CutoffSpec, steps: int) -> None:
        """Prune `model` as `spec` says, unless that was done before, and train it in `folder`."""
        saved = self.saved(folder)
        stats = None if self.on_main(lambda: has_state(folder)) else self.ranked(model)
        if saved is not None:
            assert saved.pruning is not None
            pruning = self.pruning(spec.rule or saved.pruning.rule, saved.pruning.share, saved.pruning.kept)
        else:
            assert stats is not None
            pruning = self.chosen(model, spec, stats)
        left = left_of(model, pruning.kept)
        config = self.fine_tuning(steps)
        config = replace(config, model=pruned_config(model.config, pruning, left, self.plan.codes), pruning=pruning)
        if saved is not None:
            check_same(folder, saved, config)
        self.on_main(self.keep_unpruned)
        self.train(folder, config, None if stats is None else pruned_weights(model, config, left, stats))

    def keep_unpruned(self) -> None:
        """Keep the unpruned weights in their run, so that this continues if that is trained on."""
        error = keep_weights(self.base)
        if error:
            raise ModelError(f"the weights of {self.run} cannot be kept there ({error}); copy it to where they can")

    def ranked(self, model: HVAE) -> KLStats:
        """Rank the variates of `model` on training images, or read the ranking that its run has."""
        plan = self.plan
        return self.on_main(lambda: find_ranking(model, self.source, plan.batch_size, plan.seed, self.stage).stats)

    def chosen(self, model: HVAE, spec: CutoffSpec, stats: KLStats) -> PruningConfig:
        """Choose what is kept; a tolerance is looked for on held-out images."""
        images, size, seed = self.source.split("val").evenly(self.plan.images), self.plan.batch_size, self.plan.seed
        chosen = self.on_main(
            lambda: choose_cutoff(spec, model, stats, images, batch_size=size, seed=seed, stage=self.stage).cutoff
        )
        all_kept = chosen.mask.kept_dims == LatentMask.everything(stats).kept_dims
        if all_kept and model is self.base and not (self.plan.codes and model.pruning):
            raise UsageError(f"{chosen.rule} keeps all latent dimensions of {self.run}; keep less, such as --keep 1%")
        return self.pruning(chosen.rule, chosen.keep, kept_numbers(model, chosen.mask.keep))

    def pruning(self, rule: str, share: float, kept: tuple[str, ...]) -> PruningConfig:
        return PruningConfig(
            run=self.run.as_posix(),
            model_hash=self.base_hash,
            rule=rule,
            share=share,
            kept=kept,
            collapse=self.plan.collapse,
        )

    def fine_tuning(self, steps: int) -> Config:
        """Make the configuration of `steps` steps on the unpruned model, with the numbers to compute with."""
        config = with_settings(fine_tuning_config(self.base_config, steps), self.plan.settings)
        precision = resolve_precision(config.train.precision, self.device)
        return replace(config, train=replace(config.train, precision=precision))

    def train_control(self, base: HVAE, steps: int) -> Path:
        """Train the whole model for as long, on the same images."""
        folder = self.out / CONTROL_FOLDER
        config = self.fine_tuning(steps)
        saved = self.saved(folder)
        if saved is not None:
            check_same(folder, saved, config)
        self.train(folder, config, dict(base.state_dict()))
        return folder
