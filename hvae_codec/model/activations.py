"""Saves a block's inner activations for the backward pass, or computes them again in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..config import ModelConfig

RunBlock = Callable[..., Any]
"""Runs a block of the network, given first, on the arguments that follow, as `operator.call` does."""


def checkpointing(config: ModelConfig) -> RunBlock:
    """Make the function that runs a block of a model of `config`, and runs it again in the backward pass.

    Blocks whose state has at most a quarter of the largest one's elements save what is inside: they hold little of the
    memory and cost much of the time. The same z must be chosen again, so noise must be a function of the group.
    """
    least = max(stage.state_size for stage in config.stages) / 4

    def run_checkpointed(block: nn.Module, *arguments: Any) -> Any:
        if not torch.is_grad_enabled() or cast(int, block.state_size) <= least:
            return block(*arguments)
        return checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False)

    return run_checkpointed
