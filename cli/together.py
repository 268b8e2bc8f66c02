"""Commands that several processes may run together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from .options import torch_device

if TYPE_CHECKING:
    from hvae_codec.processes import Processes


@contextmanager
def together(device: str, worker: str = "") -> Iterator[Processes]:
    """The processes that torchrun started, each on its own device; one of them says what goes wrong.

    `worker` is the k/n of a process that was started by itself, beside others that may be on the same machine.
    """
    from hvae_codec.encode.workers import Worker
    from hvae_codec.processes import FailedElsewhere, joined

    try:
        with joined() as processes:
            number = Worker.parse(worker).number if worker else 0
            yield processes.on(torch_device(device, number))
    except FailedElsewhere as error:
        raise typer.Exit(error.exit_code) from None
