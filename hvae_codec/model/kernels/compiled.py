"""Compiles formulas of many small operations to a kernel or two each; a GPU would start one for every operation.

Shapes are fixed for the first call and become variables at the second, so that however many latent groups there are,
little is compiled.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch

Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Makes a function faster; it computes the same."""

_VARIANTS = 64  # of one function: sizes of 1 are none of the variable ones, and other models have other sizes


_SAME_EACH_TIME = {"deterministic": True, "triton.autotune_pointwise": False}
"""Options of the compiler: it must not choose by measuring, which would add up in another order in another run."""


def _known(options: dict[str, Any]) -> dict[str, Any]:
    """Take those of `options` that this version of torch has."""
    known = torch._inductor.list_options()
    return {name: value for name, value in options.items() if name in known}


def compiled(function: Callable[..., Any], backend: str = "inductor") -> Callable[..., Any]:
    """Compile `function` of tensors at its first call (torch.compile)."""
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, _VARIANTS)
    options = _known(_SAME_EACH_TIME) if backend == "inductor" else None
    fast = torch.compile(function, fullgraph=True, backend=backend, options=options)

    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        with warnings.catch_warnings():  # the compiler itself looks at gradients that are not there
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
            return fast(*arguments)

    return run


def why_not_compilable(device: torch.device) -> str | None:
    """Return None if functions can be compiled for `device` on this machine, else what stands in the way, in a line.

    It takes a library for GPUs, triton, and a C compiler, and is found out by trying.
    """
    try:
        torch.compile(_doubled)(torch.ones(2, device=device))
    except Exception as error:  # of any of the compiler's parts
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return None


def _doubled(x: torch.Tensor) -> torch.Tensor:
    return 2 * x
