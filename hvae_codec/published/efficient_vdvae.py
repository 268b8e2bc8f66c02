"""Imports published Efficient-VDVAE checkpoints under this project's tensor names, and nothing that could run code."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..config import Config, ModelConfig
from ..errors import ModelError
from ..model.hvae import HVAE
from .efficient_vdvae_config import read_published_config
from .state_dict import checked_state
from .torch_file import read_torch_file

STATE_KEYS = {"ema": "ema_model_state_dict", "raw": "model_state_dict"}


def import_published(
    checkpoint: Path, config_file: Path, weights: Literal["ema", "raw"] = "ema"
) -> tuple[Config, dict[str, Tensor]]:
    """Read configuration and weights of a published checkpoint, under this project's tensor names.

    Raises `ConfigError` on a configuration that cannot be imported, `ModelError` on a checkpoint that is missing,
    damaged, holds anything but tensors and plain data, or does not fit the configuration.
    """
    return convert(read_torch_file(checkpoint), checkpoint, config_file, weights)


def convert(
    content: object, source: Path, config_file: Path, weights: Literal["ema", "raw"]
) -> tuple[Config, dict[str, Tensor]]:
    """Do what `import_published` does with the `content` of a file that was read."""
    config, key = read_published_config(config_file), STATE_KEYS[weights]
    state = content.get(key) if isinstance(content, dict) else None
    if not isinstance(state, Mapping):
        raise ModelError(f"{source} has no {key}; it is not a published checkpoint")
    return config, from_published_names(config.model, checked_state(state, f"{source}, {key}"), source)


def from_published_names(config: ModelConfig, state: Mapping[str, Tensor], source: Path) -> dict[str, Tensor]:
    """Rename published tensors to this project's names.

    Raises `ModelError` that names a tensor that is missing, unknown or of another shape.
    """
    names = published_names(config)
    for published in names.values():
        if published not in state:
            raise ModelError(f"{source} lacks the tensor {published} that its configuration asks for")
    unknown = state.keys() - set(names.values())
    if unknown:
        raise ModelError(f"{source} has a tensor {min(unknown)} that its configuration has no place for")
    own = _own_tensors(config)
    for name, published in names.items():
        given, expected = list(state[published].shape), list(own[name].shape)
        if given != expected:
            raise ModelError(f"{source}: the tensor {published} is {given}, its configuration says {expected}")
    return {name: state[published] for name, published in names.items()}


def _own_tensors(config: ModelConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        return HVAE(config).state_dict()


def published_names(config: ModelConfig) -> dict[str, str]:
    """Map this project's tensor names to the published ones."""
    blocks = dict(_published_blocks(config))
    return {name: _published_name(name, blocks) for name in _own_tensors(config)}


def _published_blocks(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """Yield (own block, published block) of both paths."""
    own = (f"bottom_up.blocks.{i}" for i in itertools.count())
    linked = itertools.count()
    for stage in config.stages:
        for i in range(stage.linked_blocks):
            number = next(linked)
            for j in range(stage.extra_bottom_up if i == 0 else 0):
                yield next(own), f"bottom_up.levels_up.{number}.{j}"
            yield next(own), f"bottom_up.levels_up_downsample.{number}"
    own = (f"top_down.blocks.{i}" for i in itertools.count())
    linked = itertools.count()
    for stage in reversed(config.stages):
        for i in range(stage.linked_blocks):
            number = next(linked)
            yield next(own), f"top_down.levels_down_upsample.{number}"
            for j in range(stage.extra_top_down if i == stage.extra_top_down_after else 0):
                yield next(own), f"top_down.levels_down.{number}.{j}"


_PARTS = {
    "cells": "residual_block",
    "skip": "skip_projection",
    "pool.conv": "pool.ops.0",
    "unpool.conv": "unpool.ops.0",
    "unpool.bias": "unpool.scale_bias",
    "prior_cell": "prior_net.0",
    "prior_conv": "prior_layer.projection",
    "posterior_cell": "posterior_net.0",
    "posterior_conv": "posterior_layer.projection",
    "z_conv": "z_projection",
}


def _published_name(name: str, blocks: Mapping[str, str]) -> str:
    if name == "top_down.start":
        return "top_down.trainable_h"
    path = name.split(".")
    if path[1] != "blocks":
        return name
    rest = ".".join(path[3:])
    part = next(part for part in _PARTS if rest.startswith(part))
    # Activations are in the published list of convolutions too, so convolution i stands at 2 i + 1.
    rest = re.sub(r"convs\.(\d+)", lambda found: f"convs.{2 * int(found[1]) + 1}", rest.removeprefix(part))
    return f"{blocks['.'.join(path[:3])]}.{_PARTS[part]}{rest}"
