"""Which device a process computes on, in words: `cpu`, `cuda`, `cuda:N`, or `auto`, a GPU if there is one."""

from __future__ import annotations

import re

from ..errors import UsageError


def choose_device(wanted: str, worker: int = 0) -> str:
    """Return `cpu`, `cuda` or `cuda:N`; workers of a store take several GPUs in turn if none is named.

    Raises `UsageError` if `wanted` is none of them, or a GPU is asked for that is not there.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:(0|[1-9][0-9]{0,3}))?", wanted):
        raise UsageError(f"--device {wanted}: give auto, cpu, cuda, or cuda:N for GPU N, counted from 0")
    if wanted == "cpu":
        return wanted
    import torch  # slow, and not needed on a CPU

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto" and not count:
        return "cpu"
    if not count:
        raise UsageError(
            f"--device {wanted}: torch finds no GPU here; give --device cpu, or install a CUDA build of torch"
        )
    kind, _, number = wanted.replace("auto", "cuda").partition(":")
    if int(number or 0) >= count:
        raise UsageError(f"--device {wanted}: GPUs are counted from 0, and the last one here is cuda:{count - 1}")
    return f"{kind}:{worker % count}" if worker and not number else wanted.replace("auto", "cuda")
