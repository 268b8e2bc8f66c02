"""What the model computes in: bfloat16 or float32 in training, full float32 where two runs must agree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch

Precision = Literal["fp32", "bf16"]


@contextmanager
def full_float32() -> Iterator[None]:
    """Convolutions and matrix products in whole float32, by the same algorithms each time; also a decorator.

    GPUs round inputs to TF32 (10 bits of mantissa) if they are allowed to, and choose algorithms by trial. A decoder
    follows its encoder only as far as both compute the same.
    """
    with _set(_PRECISION), _set(_ALGORITHMS):
        yield


@contextmanager
def same_algorithms(wanted: bool = True) -> Iterator[None]:
    """Convolutions on GPUs by algorithms that give the same numbers each time, if that is `wanted`.

    Others add up a kernel's gradient in the order in which its parts are done. On a CPU numbers are the same anyway.
    """
    with _set(_ALGORITHMS if wanted else ()):
        yield


@contextmanager
def _set(switches: Sequence[_Switch]) -> Iterator[None]:
    before = [_setting(switch) for switch in switches]
    for switch in switches:
        setattr(switch.backend, switch.name, switch.value)
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            setattr(switch.backend, switch.name, value)


class _Switch(NamedTuple):
    """A setting of torch's, and what it must be."""

    backend: Any
    name: str
    value: str | bool
    above: Any = None
    """What it inherits from if it is "none"."""


def _setting(switch: _Switch) -> str | bool:
    """What restores the switch: torch says what is in force, so a value from above is taken for an inherited one."""
    value: str | bool = getattr(switch.backend, switch.name)
    inherited = switch.above is not None and value == getattr(switch.above, switch.name)
    return "none" if inherited else value


def _precision_switches() -> tuple[_Switch, _Switch]:
    """torch's switches of precision: since 2.9 one a backend, which must not be mixed with the older ones."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    if hasattr(cudnn, "conv"):
        name = "fp32_precision"
        return _Switch(cudnn.conv, name, "ieee", cudnn), _Switch(matmul, name, "ieee", torch.backends)
    return _Switch(cudnn, "allow_tf32", False), _Switch(matmul, "allow_tf32", False)


_PRECISION = _precision_switches()
_ALGORITHMS = (
    _Switch(torch.backends.cudnn, "benchmark", False),
    _Switch(torch.backends.cudnn, "deterministic", True),
)


def resolve_precision(wanted: Literal["auto", "fp32", "bf16"], device: str) -> Precision:
    """What `wanted` means on `device`: auto is bf16 on a CPU that has instructions for it, else fp32.

    On GPUs auto is fp32, whose convolutions round to TF32: the casts of bf16 take longer there than it saves.
    """
    if wanted != "auto":
        return wanted
    return "bf16" if device == "cpu" and _cpu_has_bf16() else "fp32"


def _cpu_has_bf16() -> bool:
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def autocast(precision: Precision, device: str) -> torch.autocast:
    """Context in which convolutions run in `precision`; parameters, KL, likelihood and loss stay in float32."""
    return torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=precision == "bf16")
