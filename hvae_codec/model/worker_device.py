"""The kind of device that all workers compute on: figures of CPUs and of GPUs differ in their last bits.

With `device_choice`, which is about one process, all that `--device` may say.
"""

from __future__ import annotations

import re

import torch

from ..engine.engine import Engine
from ..errors import UsageError


def check_worker_device(wanted: str) -> None:
    """Raise `UsageError` if `wanted` is not auto, cpu or cuda; such as a GPU by number, as workers have their own."""
    if re.fullmatch(r"cuda:[0-9]+", wanted):
        raise UsageError(f"--device is {wanted}, and with --on each worker has GPUs of its own; give --device cuda")
    if wanted not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {wanted}: give auto, cpu or cuda")


def worker_device(engine: Engine, wanted: str) -> str:
    """Return `cpu` or `cuda`; if `auto` is wanted, cuda if the worker that is asked has a GPU.

    Raises `UsageError` like `check_worker_device`. Errors of the engine are those of `Engine.run`.
    """
    check_worker_device(wanted)
    if wanted != "auto":
        return wanted
    (found,) = engine.map(_device_here, [wanted])
    return found


def _device_here(_: str) -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
