"""What sending a task costs, by the place it is sent to, and whether the driver grows with the number of tasks.

    python benchmarks/task_cost.py --tasks 2000

Tasks do nothing with an item of as many bytes as a row group of 256 images. The scheduler of `dask:N` is in the
driver's process, so its memory is in the driver's. Also the same without workers, with as many tasks as a billion
images in row groups of 256 would have, to see what a driver's window holds.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

from conditions import conditions
from rich.console import Console
from rich.table import Table

from hvae_codec.engine.engine import Engine, Here
from hvae_codec.engine.executor_engine import ExecutorEngine
from hvae_codec.engine.where import engine_on

ITEM_BYTES = 33_000
"""A portion of 256 images with names of 40 characters, pickled."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--on", nargs="+", default=["local:1", "local:2", "dask:1", "dask:2"])
    parser.add_argument("--without-workers", type=int, default=3_906_250, help="tasks of the last line")
    options = parser.parse_args()
    headings = ("on", "tasks", "ms per task", "of which the driver's processor", "MiB at half", "MiB at the end")
    table = Table(*headings, caption="MiB of the driver, now, not the peak")
    for on in options.on:
        with engine_on(on) as engine:
            list(engine.run(len, items(20)))  # workers have started
            table.add_row(on, *measured(engine, options.tasks))
    table.add_row("this process", *measured(Here(), options.without_workers))
    table.add_row("an executor that does it at once", *measured(ExecutorEngine(AtOnce()), options.without_workers))
    print(f"{conditions()}\npython benchmarks/task_cost.py --tasks {options.tasks}")
    Console(width=120).print(table)


class AtOnce(Executor):
    """An executor whose tasks are done when they are sent: the driver's own work alone."""

    _max_workers = 1000

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a task; its future, which is done."""
        future: Future[Any] = Future()
        future.set_result(function(*args, **kwargs))
        return future


def items(count: int) -> Iterator[bytes]:
    return (bytes(ITEM_BYTES) for _ in range(count))


def measured(engine: Engine, tasks: int) -> tuple[str, ...]:
    """Run so many tasks; milliseconds of each, and memory at half and at the end."""
    wall, processor, half = time.perf_counter(), time.process_time(), 0.0
    for number, outcome in enumerate(engine.run(len, items(tasks))):
        assert outcome.get() == ITEM_BYTES
        if number == tasks // 2:
            half = resident_mebibytes()
    each = [
        1000 * (clock() - begun) / tasks for clock, begun in ((time.perf_counter, wall), (time.process_time, processor))
    ]
    return (f"{tasks:,}", *(f"{ms:.3f}" for ms in each), f"{half:.0f}", f"{resident_mebibytes():.0f}")


def resident_mebibytes() -> float:
    """What this process has in memory now, on Linux; 0 elsewhere."""
    status = Path(f"/proc/{os.getpid()}/status")
    found = re.search(r"VmRSS:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) / 1024 if found else 0.0


if __name__ == "__main__":
    main()
