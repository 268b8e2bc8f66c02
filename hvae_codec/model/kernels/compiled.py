"""Compiles formulas of many small operations to a kernel or two each; a GPU would start one for every operation.

Shapes are fixed for the first call and become variables at the second, so that however many latent groups there are,
little is compiled.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch

Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Makes a function faster; it computes the same."""

_VARIANTS = 64  # of one function: sizes of 1 are none of the variable ones, and other models have other sizes


def compiled(
    function: Callable[..., Any], backend: str = "inductor", on_failure: Callable[[str], None] | None = None
) -> Callable[..., Any]:
    """Compile `function` of tensors at its first call (torch.compile).

    If it cannot be compiled for tensors that come later, it runs as it is written from then on, and `on_failure` is
    called with the reason, in a line (default: the log).
    """
    dynamo, errors = torch._dynamo.config, torch._dynamo.exc.TorchDynamoException
    fast = torch.compile(function, fullgraph=True, backend=backend)
    failed = False

    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        nonlocal failed
        if failed:
            return function(*arguments)
        # A setting of the thread's; backward passes on a GPU have threads of their own.
        if dynamo.recompile_limit < _VARIANTS:
            dynamo.recompile_limit = _VARIANTS
        try:
            with warnings.catch_warnings():  # the compiler itself looks at gradients that are not there
                warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
                return fast(*arguments)
        except errors as error:
            failed = True
            (on_failure or logging.getLogger(__name__).warning)(first_line(error))
        return function(*arguments)

    return run


def why_not_compilable(device: torch.device) -> str | None:
    """Return None if functions can be compiled for `device` on this machine, else what stands in the way, in a line.

    It takes a library for GPUs, triton, and a C compiler, and is found out by trying.
    """
    try:
        torch.compile(_doubled)(torch.ones(2, device=device))
    except Exception as error:  # of any of the compiler's parts
        return first_line(error)
    return None


def first_line(error: BaseException) -> str:
    """Say what an error is, in a line: the compiler's begin with one that says only whose they are."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line and not line.endswith("raised:")), type(error).__name__)


def _doubled(x: torch.Tensor) -> torch.Tensor:
    return 2 * x
