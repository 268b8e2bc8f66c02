"""Runs commands in several processes, as torchrun starts them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from .options import torch_device

if TYPE_CHECKING:
    from hvae_codec.distributed import DistributedContext


@contextmanager
def distributed_session(device: str) -> Iterator[DistributedContext]:
    """Join the processes that torchrun started, each on its own device; one of them reports an error."""
    from hvae_codec.distributed import FailedElsewhere, init_distributed

    try:
        with init_distributed() as processes:
            yield processes.on(torch_device(device))
    except FailedElsewhere as error:
        raise typer.Exit(error.exit_code) from None
