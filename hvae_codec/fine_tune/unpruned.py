"""The model that is pruned: with the weights that a pruning began with, and its ranking on the images at hand."""

from __future__ import annotations

from pathlib import Path

from ..analysis.ranking_file import find_ranking
from ..data.training_and_held_out import TrainingAndHeldOut
from ..errors import ModelError, UsageError
from ..model.checkpoint import load_model, model_hash
from ..model.hvae import HVAE
from ..progress import Stage
from ..prune.cutoffs import CutoffSpec
from ..prune.kl_stats import KLStats, kl_stats
from .plan import PrunePlan


def load_unpruned(run: Path, begun_with: str, device: str) -> HVAE:
    """Load the model of `run` or, if that was trained on since, with the weights of the hash `begun_with`.

    The latter is of no run: what is measured of it is not stored there. Raises `ModelError` if these are not there.
    """
    model = load_model(run, device)
    if begun_with in ("", model_hash(model)):
        return model
    older = load_model(run, device, kept=begun_with)
    if model_hash(older) != begun_with:
        raise ModelError(
            f"this was begun with model {begun_with[:12]}, and that of {run} is {model_hash(model)[:12]} by now; give "
            "another --out"
        )
    older.run = None
    return older


def check_plan(model: HVAE, run: Path, plan: PrunePlan) -> None:
    """Raise `UsageError` if `plan` cannot be carried out on the `model` of `run`."""
    if model.config.is_slim and plan.collapse == "sample":
        raise UsageError(
            f"{run} is slim: what was pruned away has no prior to sample; leave out --collapse sample, or give the run "
            "it was pruned from as --model"
        )
    if model.config.learned_steps and not plan.codes:
        raise UsageError(f"{run} was trained for codes; give --codes, or the run it was pruned from as --model")
    if plan.cutoffs[0] == CutoffSpec() and model.pruning is None:
        raise UsageError(f"{run} was not pruned, and nothing says what to keep; give --keep, such as --keep 1%")
    for spec in plan.cutoffs:
        spec.check(model, run)


def ranking_of(model: HVAE, images: TrainingAndHeldOut, plan: PrunePlan, stage: Stage) -> KLStats:
    """Read the ranking that the model's run stores, or measure it: on these training images in any case."""
    found = find_ranking(model, images, plan.batch_size, plan.seed, stage)
    if found.is_of_these_images:
        return found.stats
    sample, progress = images.training.evenly(plan.images), stage("Ranking by KL")
    return kl_stats(model, sample, batch_size=plan.batch_size, seed=plan.seed, progress=progress)
