"""A physically smaller model with the same function as one whose pruned variates are always at the prior's mean.

What pruned variates add to the state goes into the residual term (`model.folding`), and everything that only they
needed goes:

    a group with some variates left    rows of the prior's and posterior's heads, columns of the projection of z
    a group without                    prior, posterior, projection: it becomes a residual cell, with z [B, 0, H, W]
    a skip that no group reads         its convolution; of the bottom-up path all that follows the last skip read
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import ModelConfig
from ..errors import ModelError, UsageError
from ..model.folding import folded_residual
from ..model.hvae import HVAE
from ..model.kernels.activated_conv import Kernel, kernel_of
from ..model.precision import full_float32
from ..model.top_down import LatentGroup, TopDownBlock

TOLERANCE = 1e-5
"""Largest difference of the two models' outputs, as a share of the largest output: rounding of float32."""

_CHECK_IMAGES = 4


def slim(model: HVAE, keep: Sequence[NDArray[np.bool_]]) -> HVAE:
    """Return the model that computes what `model` does with all variates but the kept ones at their prior's mean.

    `keep` is bool [variates] for each latent group in top-down order, True = keep, as `LatentMask.keep`. A slim model
    can be cut further. The result is on the same device, in evaluation state and of no run; its weights are its own.
    Raises `UsageError` if `keep` is of another model, of single positions, or keeps nothing; `ModelError` if the two
    models' outputs are found to differ.
    """
    _check_whole_variates(keep, model.config)
    config = slim_config(model.config, [int(kept.sum()) for kept in keep])
    with torch.random.fork_rng(devices=[]):  # its first weights are replaced
        smaller = HVAE(config)
    tensors = _slim_weights(model, keep)
    smaller.load_state_dict({name: tensors[name] for name in smaller.state_dict()})
    smaller.requires_grad_(False)
    smaller.eval().to(model.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    _check_same_function(model, smaller, keep)
    return smaller


def slim_config(config: ModelConfig, kept_counts: Sequence[int]) -> ModelConfig:
    """Return `config` with so many variates in each latent group, in top-down order.

    Stages of which nothing is pruned stay as they are. Raises `UsageError` on another number of groups, `ConfigError`
    if a group has fewer variates than it is to keep or none keeps any.
    """
    if len(kept_counts) != len(config.groups):
        raise UsageError(f"numbers of {len(kept_counts)} latent groups are given; the model has {len(config.groups)}")
    for number, (count, group) in enumerate(zip(kept_counts, config.groups, strict=True)):
        if count > group.variates:
            raise UsageError(f"latent group {number} is to keep {count} variates; it has {group.variates}")
    counts, stages = iter(kept_counts), []
    for stage in reversed(config.stages):
        kept = tuple(itertools.islice(counts, stage.latent_groups))
        whole = kept == (stage.variates,) * stage.latent_groups
        stages.append(dataclasses.replace(stage, kept=None if whole else kept))
    return dataclasses.replace(config, stages=tuple(reversed(stages)))


def _check_whole_variates(keep: Sequence[NDArray[np.bool_]], config: ModelConfig) -> None:
    if any(kept.ndim == 3 for kept in keep):
        raise UsageError("the mask keeps single positions; a smaller model needs one of --granularity variate")
    found, expected = [kept.shape for kept in keep], [(group.variates,) for group in config.groups]
    if found != expected:
        raise UsageError("the mask was made for another model; make one from this model's KL statistics")


def _slim_weights(model: HVAE, keep: Sequence[NDArray[np.bool_]]) -> dict[str, Tensor]:
    """Return the weights by name, also those that the smaller model has no place for."""
    tensors = model.state_dict()
    for index, (block, kept) in enumerate(zip(model.top_down.blocks, keep, strict=True)):
        on_device = torch.from_numpy(kept.copy()).to(model.device)
        for layer, (weight, bias) in _slim_layers(cast(TopDownBlock, block), on_device).items():
            name = f"top_down.blocks.{index}.{layer}"
            tensors |= {f"{name}.weight": weight, f"{name}.bias": bias}
        if f"top_down.blocks.{index}.log_step" in tensors:
            tensors[f"top_down.blocks.{index}.log_step"] = tensors[f"top_down.blocks.{index}.log_step"][on_device]
    return tensors


@torch.no_grad()
def _slim_layers(block: TopDownBlock, kept: Tensor) -> dict[str, Kernel]:
    """Return the convolutions of `block` that are others with only the `kept` variates, bool [variates], by name."""
    if not block.variates:
        return {}
    number = len(block.prior_cell.convs) - 1
    last = f"prior_cell.convs.{number}"
    weight, bias = folded_residual(block, kept)
    of_z, of_z_bias = kernel_of(block.z_conv)
    if not kept.any():
        return {last: (weight, bias + of_z_bias)}
    of_prior = block.prior_kernels()[1]
    layers = {"z_conv": (of_z[:, kept], of_z_bias)}
    if block.prior_conv is None or block.posterior_conv is None:
        of_prior = _of_kept(of_prior, kept)
        layers[f"posterior_cell.convs.{number}"] = _of_kept(kernel_of(block.posterior_cell.convs[-1]), kept)
    else:
        layers["prior_conv"] = _of_kept(kernel_of(block.prior_conv), kept)
        layers["posterior_conv"] = _of_kept(kernel_of(block.posterior_conv), kept)
    return layers | {last: (torch.cat([weight, of_prior[0]]), torch.cat([bias, of_prior[1]]))}


def _of_kept(heads: Kernel, kept: Tensor) -> Kernel:
    """Select the `kept` variates' means and scales, each half of the outputs."""
    both = kept.repeat(2)
    return heads[0][both], heads[1][both]


def _check_same_function(model: HVAE, smaller: HVAE, keep: Sequence[NDArray[np.bool_]]) -> None:
    """Raise `ModelError` if outputs for random images differ by more than rounding."""
    config, generator = model.config, torch.Generator().manual_seed(0)
    shape = (_CHECK_IMAGES, config.channels, config.image_size, config.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    expected, found = _output(model, images, keep), _output(smaller, images, [kept[kept] for kept in keep])
    difference = float((found - expected).abs().max() / expected.abs().max())
    if not difference <= TOLERANCE:  # also if it is not a number
        raise ModelError(
            f"the smaller model's outputs differ from the pruned one's by {difference:.1e} of the largest, more than "
            f"{TOLERANCE:g}; use the whole model with the mask, as its numbers are too large for float32"
        )


@torch.no_grad()
@full_float32()
def _output(model: HVAE, images: Tensor, keep: Sequence[NDArray[np.bool_]]) -> Tensor:
    """Compute the output's parameters with the kept variates at their posterior's mean, the others at their prior's."""
    variates = [torch.from_numpy(np.flatnonzero(kept)).to(model.device) for kept in keep]

    def choose(group: LatentGroup) -> Tensor:
        own = variates[group.index]
        return group.prior_mean.index_copy(1, own, group.posterior(own).mean) if len(own) else group.prior_mean

    return model.top_down(model.activations(images), choose, len(images))
