"""Full float32 where two runs of the model must agree."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Convolutions in whole float32, also on GPUs that would round their inputs to TF32 (10 bits of mantissa).

    A decoder follows its encoder only as far as both compute the same. Also a decorator of functions.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def resolve_precision(wanted: Literal["auto", "fp32", "bf16"], device: str) -> Literal["fp32", "bf16"]:
    """What `wanted` means on `device`."""
    return "fp32" if wanted == "auto" else wanted
