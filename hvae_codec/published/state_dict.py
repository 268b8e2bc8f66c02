"""Checks the tensors of a published checkpoint before anything is made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ..errors import ModelError

PARALLEL_PREFIX = "module."
"""What training on several GPUs puts before the names of its own weights."""


def checked_state(state: Mapping[object, object], where: str) -> dict[str, Tensor]:
    """Return the tensors of a state dict in float32, under names without the prefix of parallel training.

    Raises `ModelError` that begins with `where` if one is not dense or not of finite real numbers, if a name occurs
    with the prefix and without, or if tensors share their numbers.
    """
    for name, tensor in state.items():
        if not _is_weight(name, tensor):
            raise ModelError(f"{where}: {name!s:.100} is not a dense tensor of real numbers")
    tensors = cast(Mapping[str, Tensor], state)
    own = {name.removeprefix(PARALLEL_PREFIX): tensor for name, tensor in tensors.items()}
    if len(own) < len(state):
        raise ModelError(f"{where} has tensors twice, with the prefix {PARALLEL_PREFIX} and without")
    if _overlap(own.values()):
        raise ModelError(f"{where}: tensors share their numbers with one another; no published model's do")
    return {name: _finite(tensor, f"{where}: the tensor {name}") for name, tensor in own.items()}


def _is_weight(name: object, tensor: object) -> bool:
    dense = isinstance(tensor, Tensor) and tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_nested)
    return isinstance(name, str) and dense and cast(Tensor, tensor).is_floating_point()


def _overlap(tensors: Iterable[Tensor]) -> bool:
    """Whether there are more numbers than stored ones: a small file must not be able to fill the memory."""
    tensors = list(tensors)
    stored = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(tensor.nbytes for tensor in tensors) > sum(stored.values())


def _finite(tensor: Tensor, where: str) -> Tensor:
    weight = tensor.detach().float().contiguous()
    if not np.isfinite(weight.numpy()).all():  # thousands of small tensors are no work for torch's threads
        raise ModelError(f"{where} holds numbers that are not finite; take a checkpoint from before training failed")
    return weight
