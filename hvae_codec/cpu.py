"""Settings of a whole process that make a model faster on a CPU; for commands to make, not for a library."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Numbers of mallopt's parameters in glibc's malloc.h."""


@contextmanager
def tuned_for_training() -> Iterator[None]:
    """Flush numbers too near 0 for normal floats to 0, and reuse freed memory, which stays set for the whole process.

    CPUs handle denormals slowly: a few percent of a step.
    """
    torch.set_flush_denormal(True)
    reuse_freed_memory()
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def reuse_freed_memory() -> bool:
    """Make malloc reuse large blocks of all threads; return whether the system's malloc has such settings (glibc).

    The system clears memory page by page before it gives it out again, which takes as long as a third of a forward
    pass. All threads share one arena, the only one that follows these settings.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    settings = {_MMAP_THRESHOLD: 1 << 30, _TRIM_THRESHOLD: (1 << 31) - 1, _ARENA_MAX: 1}
    return all(mallopt(parameter, value) for parameter, value in settings.items())


def prepare_worker() -> None:
    """Make a process that computes for others as fast as a command is; see `reuse_freed_memory`."""
    reuse_freed_memory()
