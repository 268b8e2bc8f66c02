"""The numbers the model computes with: bfloat16 or float32 in training, full float32 if two runs must agree."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

Precision = Literal["fp32", "bf16"]


@contextmanager
def full_float32() -> Iterator[None]:
    """Run convolutions and matrix products in whole float32, by the same algorithms each time; also a decorator.

    GPUs round inputs to TF32 (10 bits of mantissa) if they are allowed to, and choose algorithms by trial. A decoder
    follows its encoder only as far as both compute the same.
    """
    with _set(*_PRECISION, *_ALGORITHMS):
        yield


@contextmanager
def same_algorithms(wanted: bool = True) -> Iterator[None]:
    """Run convolutions on GPUs by algorithms that give the same numbers each time, if that is `wanted`.

    Others add up a kernel's gradient in the order in which its parts are done. CPUs give the same numbers anyway.
    """
    with _set(*(_ALGORITHMS if wanted else ())):
        yield


@contextmanager
def _set(*switches: _Switch) -> Iterator[None]:
    for switch in switches:
        switch.enter()
    try:
        yield
    finally:
        for switch in switches:
            switch.leave()


@dataclass(eq=False)
class _Switch:
    """A setting of torch's, which is the process's, and the value it must have while any thread is within."""

    backend: Any
    name: str
    value: str | bool
    above: Any = None  # the backend that it inherits from if it is "none"
    before: str | bool = False
    within: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def enter(self) -> None:
        """Set it, if nobody is within."""
        with self.lock:
            if not self.within:
                self.before = self.setting()
                setattr(self.backend, self.name, self.value)
            self.within += 1

    def leave(self) -> None:
        """Set it as it was, if nobody else is within."""
        with self.lock:
            self.within -= 1
            if not self.within:
                setattr(self.backend, self.name, self.before)

    def setting(self) -> str | bool:
        """Find what restores the switch: torch tells what is in force, so a value equal to `above`'s is inherited."""
        value: str | bool = getattr(self.backend, self.name)
        return "none" if self.above is not None and value == getattr(self.above, self.name) else value


_cudnn, _matmul = torch.backends.cudnn, torch.backends.cuda.matmul
# One switch per backend since torch 2.9, which must not be mixed with the older ones.
if hasattr(_cudnn, "conv"):
    _PRECISION = (
        _Switch(_cudnn.conv, "fp32_precision", "ieee", _cudnn),
        _Switch(_matmul, "fp32_precision", "ieee", torch.backends),
    )
else:
    _PRECISION = (_Switch(_cudnn, "allow_tf32", False), _Switch(_matmul, "allow_tf32", False))
_ALGORITHMS = (_Switch(_cudnn, "benchmark", False), _Switch(_cudnn, "deterministic", True))


def resolve_precision(wanted: Literal["auto", "fp32", "bf16"], device: str) -> Precision:
    """Choose for auto: bf16 on a CPU that has instructions for it, else fp32.

    On GPUs fp32's convolutions round to TF32; bf16 took longer when it was measured (docs/gpu.md).
    """
    if wanted != "auto":
        return wanted
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)() if device == "cpu" else {}
    return "bf16" if any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16")) else "fp32"


def copied_as(wanted: Literal["auto", "fp32", "bf16"], device: str) -> torch.dtype | None:
    """Choose the type in which weights are copied for the model once a step; None: convolutions cast their own.

    A GPU would take longer to start thousands of casts than to compute them.
    """
    return torch.bfloat16 if resolve_precision(wanted, device) == "bf16" and device != "cpu" else None


def autocast(precision: Precision, device: str) -> torch.autocast:
    """Run convolutions in `precision`; parameters, KL, likelihood and loss stay in float32."""
    return torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=precision == "bf16")
