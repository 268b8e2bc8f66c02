"""Commands that several processes may run together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from .options import Device, torch_device

if TYPE_CHECKING:
    from hvae_codec.distributed import DistributedContext


@contextmanager
def distributed_session(device: Device) -> Iterator[DistributedContext]:
    """The processes that torchrun started, each on its own device; one of them says what goes wrong."""
    from hvae_codec.distributed import FailedElsewhere, init_distributed

    try:
        with init_distributed() as processes:
            yield processes.on(torch_device(device))
    except FailedElsewhere as error:
        raise typer.Exit(error.exit_code) from None
