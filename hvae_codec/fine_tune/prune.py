"""Prunes the model of a run and trains what is left, in one stage or in several, each ranked anew before it is pruned.

    RUN ─ rank ─> mask ─> OUT/stages/1 ─ rank ─> mask ─> OUT/stages/2 ─ rank ─> mask ─> OUT

Each folder is a run, with all that `train` promises: killed at any moment, the same call continues where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ..analysis.cutoff_cost import choose_cutoff
from ..config import CONFIG_FILE, LARGEST_SEED, Config, PruningConfig, with_settings
from ..data.training_and_held_out import TrainingAndHeldOut
from ..distributed import DistributedContext
from ..errors import ModelError, UsageError
from ..model.checkpoint import keep_weights, load_model, load_run_config, model_hash
from ..model.hvae import HVAE
from ..model.precision import resolve_precision
from ..progress import Stage
from ..prune.cutoffs import CutoffSpec
from ..prune.kl_stats import KLStats
from ..prune.mask import LatentMask, load_mask
from ..train.accumulation import check_batch_size
from ..train.run_folder import check_free, check_same
from ..train.state import has_state
from .plan import PrunePlan
from .pruned_model import kept_numbers, left_of, pruned_config, pruned_weights
from .schedule import fine_tuning_config, share_of_training, stage_steps
from .slim_run import SLIM_FILES, slim_run
from .unpruned import check_plan, load_unpruned, ranking_of

STAGES_FOLDER, CONTROL_FOLDER = "stages", "control"
"""Runs beside the pruned one, in its folder: those on the way to it, and the whole model trained for as long."""


class Trainer(Protocol):
    """Trains a run; it shows how that goes."""

    def __call__(self, run: Path, config: Config, seed: int, initial: Mapping[str, Tensor] | None) -> None:
        """Train `config` in the folder `run`, from its newest state or, if it has none, from the weights `initial`.

        Raises `KeyboardInterrupt` also after a signal in the last step: there may be more to come.
        """


Stages = Callable[[], AbstractContextManager[Stage]]
"""Shows pieces of long work, between trainings, which show themselves."""


@dataclass(frozen=True)
class PrunedRun:
    """A run that was pruned, and what it can be compared with."""

    run: Path  # the pruned run's folder
    unpruned: Path  # that of the run it was made from
    kept_hash: str  # of the unpruned run's weights that were pruned
    kept: tuple[str, ...]  # of each latent group, the unpruned model's variates that are left
    rule: str  # what was asked for
    control: Path | None  # the whole model, trained for as long


def prune(
    run: Path,
    out: Path,
    images: TrainingAndHeldOut,
    plan: PrunePlan,
    train: Trainer,
    stages: Stages,
    *,
    processes: DistributedContext | None = None,
) -> PrunedRun:
    """Prune the model of `run` as `plan` says, and train what is left in `out`.

    Masks are of rankings on training images; each stage has one of its own, and nothing is ranked while a
    stage is trained. Of several `processes`, the first one ranks and writes. Raises `ModelError` if `out` is something
    else, or was begun with another plan; `UsageError` if nothing can be kept that way; and what training raises.
    """
    return _Pruning(run, out, images, plan, train, stages, processes or DistributedContext()).run_all()


@dataclass
class _Pruning:
    """A pruning at work."""

    run: Path
    out: Path
    images: TrainingAndHeldOut
    plan: PrunePlan
    train: Trainer
    stages: Stages
    processes: DistributedContext

    def __post_init__(self) -> None:
        self.device, self.on_main = self.processes.device, self.processes.run_on_main
        self.made_slim = self.plan.ends_slim and self.plan.collapse == "sample"

    def run_all(self) -> PrunedRun:
        """Train all stages, then the control, if one is wanted."""
        self.on_main(self.check_out)
        begun = self.saved(self.folder(0))
        self.base = load_unpruned(self.run, begun.model_hash if begun else "", self.device)
        check_plan(self.base, self.run, self.plan)
        self.base_config, self.base_hash = load_run_config(self.run), model_hash(self.base)
        total = self.plan.steps or share_of_training(self.run, self.base_config, self.plan.share)
        check_batch_size(self.fine_tuning(total).train, self.processes.world_size)
        model, pruning = self.base, begun
        for number, steps in enumerate(stage_steps(total, len(self.plan.cutoffs))):
            pruning = self.train_stage(number, model, steps)
            model = load_model(self.folder(number), self.device)
        if self.made_slim:
            self.on_main(lambda: slim_run(self.folder(number), self.out))
        control = self.train_control(total) if self.plan.control else None
        assert pruning is not None  # there is a stage
        return PrunedRun(self.out, self.run, self.base_hash, pruning.kept, pruning.rule, control)

    def check_out(self) -> None:
        """Raise `ModelError` if what is in the folder of the pruned run is not of such a run."""
        last = self.out / STAGES_FOLDER / str(len(self.plan.cutoffs))
        was_made_slim = (last / CONFIG_FILE).is_file()
        beside = SLIM_FILES if self.made_slim and was_made_slim else ()
        check_free(self.out, beside=(STAGES_FOLDER, CONTROL_FOLDER, *beside))
        if not (self.out / CONFIG_FILE).is_file():
            return
        if load_run_config(self.out).pruning is None:
            raise ModelError(f"{self.out} is a run that was not pruned; give another --out")
        if was_made_slim != self.made_slim:
            raise ModelError(
                f"{self.out} was pruned in another way; give the options it was begun with or another --out"
            )

    def folder(self, stage: int) -> Path:
        """Return the folder of a stage's run: `out` of the last one, unless that is made slim afterwards."""
        is_last = stage == len(self.plan.cutoffs) - 1
        return self.out if is_last and not self.made_slim else self.out / STAGES_FOLDER / str(stage + 1)

    def saved(self, folder: Path) -> PruningConfig | None:
        """Read what a run that was begun was pruned to, as the first process sees it; None if there is no such run."""
        return self.on_main(lambda: load_run_config(folder).pruning if (folder / CONFIG_FILE).is_file() else None)

    def train_stage(self, number: int, model: HVAE, steps: int) -> PruningConfig:
        """Prune `model`, unless that was done before, and train what is left."""
        folder, spec = self.folder(number), self.plan.cutoffs[number]
        saved, is_under_way = self.saved(folder), self.on_main(lambda: has_state(folder))
        stats = None if is_under_way else self.ranked(model)
        pruning = self.continued(saved, model, spec) if saved else self.chosen(model, spec, stats or self.ranked(model))
        left = left_of(model, pruning.kept)
        config = self.fine_tuning(steps)
        config = replace(config, model=pruned_config(model.config, pruning, left, self.plan.codes), pruning=pruning)
        self.on_main(self.keep_unpruned)
        initial = None if stats is None else pruned_weights(model, config, left, stats)
        # Of another seed in each stage: all would see the same images in the same order with the same noise.
        self.train_in(folder, config, (self.plan.seed + number) % (LARGEST_SEED + 1), initial)
        return pruning

    def train_in(self, folder: Path, config: Config, seed: int, initial: Mapping[str, Tensor] | None) -> None:
        """Train, unless `folder` was begun with something else."""
        self.on_main(lambda: check_same(folder, config, seed))
        self.train(folder, config, seed, initial)

    def keep_unpruned(self) -> None:
        """Keep the unpruned weights in their run, so that this continues if that is trained on."""
        error = keep_weights(self.base)
        if error:
            raise ModelError(f"the weights of {self.run} cannot be kept there ({error}); copy it to where they can")

    def ranked(self, model: HVAE) -> KLStats:
        """Rank the variates of `model`, on the first process."""
        with self.stages() as stage:
            return self.on_main(lambda: ranking_of(model, self.images, self.plan, stage))

    def continued(self, saved: PruningConfig, model: HVAE, spec: CutoffSpec) -> PruningConfig:
        """Return what this call would have pruned to, if an earlier one had not: the two must agree."""
        kept = saved.kept if spec.file is None else kept_numbers(model, load_mask(spec.file).keep)
        return replace(saved, rule=spec.rule, kept=kept, collapse=self.plan.collapse)

    def chosen(self, model: HVAE, spec: CutoffSpec, stats: KLStats) -> PruningConfig:
        """Choose what is kept; a tolerance is looked for on held-out images."""
        images, size, seed = self.images.held_out.evenly(self.plan.images), self.plan.batch_size, self.plan.seed
        with self.stages() as stage:
            chosen = self.on_main(
                lambda: choose_cutoff(spec, model, stats, images, batch_size=size, seed=seed, stage=stage).cutoff
            )
        everything = LatentMask.everything(stats)
        adds_codes = self.plan.codes and not model.config.learned_steps and model.pruning is not None
        if chosen.mask.kept_dims == everything.kept_dims and model is self.base and not adds_codes:
            raise UsageError(
                f"{chosen.rule} keeps all latent dimensions of {self.run}, {100 * everything.kept_share:.3g}% of the "
                "unpruned model's; keep less"
            )
        return PruningConfig(
            run=self.run.as_posix(),
            model_hash=self.base_hash,
            rule=chosen.rule,
            share=chosen.keep,
            kept=kept_numbers(model, chosen.mask.keep),
            collapse=self.plan.collapse,
        )

    def fine_tuning(self, steps: int) -> Config:
        """Make the configuration of `steps` steps on the unpruned model, with the numbers to compute with."""
        config = with_settings(fine_tuning_config(self.base_config, steps), self.plan.settings)
        precision = resolve_precision(config.train.precision, self.device)
        return replace(config, train=replace(config.train, precision=precision))

    def train_control(self, steps: int) -> Path:
        """Train the whole model for as long, on the same images."""
        folder = self.out / CONTROL_FOLDER
        self.train_in(folder, self.fine_tuning(steps), self.plan.seed, dict(self.base.state_dict()))
        return folder
