"""What the model computes in: bfloat16 or float32 in training, full float32 where two runs must agree."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Precision = Literal["fp32", "bf16"]


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


def resolve_precision(wanted: Literal["auto", "fp32", "bf16"], device: str) -> Precision:
    """What `wanted` means on `device`: auto is bf16 where the processor has instructions for it, else fp32."""
    if wanted != "auto":
        return wanted
    native = torch.cuda.is_bf16_supported(including_emulation=False) if device.startswith("cuda") else _cpu_has_bf16()
    return "bf16" if native else "fp32"


def _cpu_has_bf16() -> bool:
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def autocast(precision: Precision, device: str) -> torch.autocast:
    """Context in which convolutions run in `precision`; parameters, KL, likelihood and loss stay in float32."""
    return torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=precision == "bf16")
