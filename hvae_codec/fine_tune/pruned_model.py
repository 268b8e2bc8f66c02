"""The model that fine-tuning begins with: what a mask leaves of a model, with steps for codes if these are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import Config, ModelConfig, PruningConfig
from ..errors import UsageError
from ..model.hvae import HVAE
from ..model.top_down import STEP_RATE
from ..prune.kl_stats import KLStats
from ..prune.slim import slim, slim_config
from ..ranges import flags_of, ranges_text

FIRST_STEP = 1.5
"""Step of a code before it is learned, in average posterior standard deviations."""

Flags = Sequence[NDArray[np.bool_]]
"""Of each latent group, bool [variates]."""


def kept_numbers(model: HVAE, keep: Flags) -> tuple[str, ...]:
    """Write what `keep` leaves of `model`, which may be pruned already, in numbers of the unpruned model's variates."""
    if any(flags.ndim != 1 for flags in keep):
        raise UsageError("the mask keeps single positions; prune takes away whole variates, so give another mask")
    if model.pruning is None or not model.config.is_slim:
        return tuple(ranges_text(flags) for flags in keep)
    texts = []
    for flags, text, shape in zip(keep, model.pruning.kept, model.config.unpruned_groups, strict=True):
        whole = flags_of(text, shape.variates, "variates")
        whole[np.flatnonzero(whole)[~flags]] = False
        texts.append(ranges_text(whole))
    return tuple(texts)


def left_of(model: HVAE, kept: Sequence[str]) -> list[NDArray[np.bool_]]:
    """Read what `kept_numbers` wrote: of each group of `model`, which of the variates it has are left."""
    shapes = model.config.unpruned_groups
    wanted = [flags_of(text, shape.variates, "variates") for text, shape in zip(kept, shapes, strict=True)]
    if model.pruning is None or not model.config.is_slim:
        return wanted
    before = zip(wanted, model.pruning.kept, shapes, strict=True)
    return [flags[flags_of(text, shape.variates, "variates")] for flags, text, shape in before]


def pruned_config(model: ModelConfig, pruning: PruningConfig, left: Flags, codes: bool) -> ModelConfig:
    """Make the configuration of what is left of a model."""
    if pruning.collapse == "mean":
        model = slim_config(model, [int(flags.sum()) for flags in left])
    return replace(model, learned_steps=codes)


def pruned_weights(model: HVAE, config: Config, left: Flags, stats: KLStats) -> dict[str, Tensor]:
    """Make the weights that the run of `config` begins with, from those of `model` and the stds in `stats`."""
    small = slim(model, left) if config.model.is_slim else model
    weights = dict(small.state_dict())
    if not config.model.learned_steps:  # they may have been learned before
        weights = {name: weight for name, weight in weights.items() if not name.endswith(".log_step")}
    if config.model.learned_steps and not model.config.learned_steps:
        kept = left if config.model.is_slim else [np.ones(len(std), dtype=bool) for std in stats.posterior_std]
        for index, (std, flags) in enumerate(zip(stats.posterior_std, kept, strict=True)):
            if flags.any():
                step = torch.from_numpy(FIRST_STEP * std[flags].clip(1e-6)).log().float() / STEP_RATE
                weights[f"top_down.blocks.{index}.log_step"] = step
    return weights
