"""Where row groups are worked on: this process, or the engine of `--on`; never processes that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from hvae_codec.errors import UsageError

from .display import say

if TYPE_CHECKING:
    from hvae_codec.engine.engine import Engine
    from hvae_codec.store.workers import Worker


@contextmanager
def engine_session(on: str | None) -> Iterator[Engine]:
    """Open the engine of `--on`, and close it at the end; see `engine_on`."""
    from hvae_codec.cpu import prepare_worker
    from hvae_codec.engine.where import engine_on

    with engine_on(on, initializer=prepare_worker, say=say) as engine:
        yield engine


def refuse_torchrun(command: str) -> None:
    """Raise `UsageError` if torchrun started this process: one process sends row groups to others.

    Of its processes, the first one says so. The others end without a word, and without an error: at that, torchrun
    would end the first one before it has said anything.
    """
    count = os.environ.get("WORLD_SIZE", "1")
    if "RANK" not in os.environ or not count.isdecimal() or int(count) == 1:
        return
    if os.environ["RANK"] != "0":
        raise typer.Exit
    raise UsageError(f"{command} is no command for torchrun, which started it {count} times; give --on local:{count}")


def parse_worker(text: str) -> Worker:
    """Read the worker k/n; an empty `text` is one that is alone."""
    from hvae_codec.store.workers import Worker

    return Worker.parse(text) if text else Worker()


def own_device(device: str, on: str | None, worker: Worker) -> str:
    """Choose where this process computes; raises `UsageError` if neither it nor workers elsewhere have such a device.

    Workers may have GPUs, and this process none.
    """
    from hvae_codec.model.worker_device import check_worker_device

    from .options import torch_device

    if on is None:
        return torch_device(device, worker.number)
    check_worker_device(device)
    return torch_device("auto" if device == "cuda" else device)
