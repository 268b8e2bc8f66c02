"""Whether a block's inner activations are kept for the backward pass, or computed again in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

RunBlock = Callable[..., Any]
"""Runs a block of the network, given first, on the arguments that follow."""


def run_plainly(block: nn.Module, *arguments: Any) -> Any:
    """Run the block; autograd keeps what it needs."""
    return block(*arguments)


def run_checkpointed(block: nn.Module, *arguments: Any) -> Any:
    """Run the block and keep its arguments alone; the backward pass runs it again.

    What chooses z must choose the same again, so its noise must be a function of the group.
    """
    if not torch.is_grad_enabled():
        return block(*arguments)
    return checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False)
