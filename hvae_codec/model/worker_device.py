"""The kind of device that all workers compute on: figures of CPUs and of GPUs differ in their last bits."""

from __future__ import annotations

import re

import torch

from ..engine.engine import Engine
from ..errors import UsageError


def worker_device(engine: Engine, wanted: str) -> str:
    """Return `cpu` or `cuda`; if `auto` is wanted, cuda if the worker that is asked has a GPU.

    Raises `UsageError` if `wanted` is another word, or a GPU by number: workers have their own. Errors of the engine
    are those of `Engine.run`.
    """
    if re.fullmatch(r"cuda:[0-9]+", wanted):
        raise UsageError(f"--device is {wanted}, and with --on each worker has GPUs of its own; give --device cuda")
    if wanted not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {wanted}: give auto, cpu or cuda")
    if wanted != "auto":
        return wanted
    (found,) = engine.map(_device_here, [wanted])
    return found


def _device_here(_: str) -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
