"""Runs commands in several processes: those of torchrun, or workers started by hand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from hvae_codec.errors import UsageError

from .options import torch_device

if TYPE_CHECKING:
    from hvae_codec.distributed import DistributedContext
    from hvae_codec.store.workers import Worker


@contextmanager
def distributed_session(device: str, worker: str = "") -> Iterator[DistributedContext]:
    """Join the processes that torchrun started, each on its own device; one of them reports an error.

    `worker` is the k/n of a process that was started by hand; others may run on the same machine.
    """
    from hvae_codec.distributed import FailedElsewhere, init_distributed

    try:
        with init_distributed() as processes:
            yield processes.on(torch_device(device, _number(worker)))
    except FailedElsewhere as error:
        raise typer.Exit(error.exit_code) from None


def refuse_torchrun(command: str) -> None:
    """Raise `UsageError` in the first of the processes that torchrun started; the others end, as if all were well."""
    count = os.environ.get("WORLD_SIZE", "1")
    if count == "1":
        return
    if os.environ.get("RANK", "0") != "0":  # or the launcher would end the first one before it says why
        raise typer.Exit(0)
    raise UsageError(f"{command} runs in {count} processes by --on local:{count}, without torchrun")


def _number(worker: str) -> int:
    from hvae_codec.store.workers import Worker

    return Worker.parse(worker).number if worker else 0


def parse_worker(text: str, processes: DistributedContext) -> Worker:
    """Read the worker k/n; an empty `text` means this process among those that torchrun started."""
    from hvae_codec.store.workers import Worker

    if not text:
        return Worker(processes.rank, processes.world_size)
    if processes.world_size > 1:
        raise UsageError(f"--worker {text}: the processes that torchrun starts are workers already; leave it out")
    return Worker.parse(text)
