"""Kills, and stops, workers and schedulers of a driver at random moments; part of kill_workers.py.

The driver is this process, and must end well: a worker's row group is encoded again, and what a worker that comes back
writes is the same. If the scheduler is killed, the driver ends with one sentence, and the same call continues.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from hvae_codec import LatentMask, encode_images, kl_stats, load_model
from hvae_codec.encode.pipeline import EncodeOptions
from hvae_codec.engine.engine import Engine
from hvae_codec.engine.local_processes import local_engine, shared_cores
from hvae_codec.engine.where import engine_on
from hvae_codec.errors import EngineError

OPTIONS = EncodeOptions(batch_size=8, row_group_size=8, evaluate=True)
STOPPED_SECONDS, TTL_SECONDS = 15.0, 8.0
"""How long a worker is stopped, and after what time Dask's scheduler takes it for dead here."""


@dataclass(frozen=True)
class Place:
    """An engine, and the processes that are killed."""

    engine: Engine
    victims: Callable[[], list[int]]


@dataclass(frozen=True)
class EngineWay:
    """What happens to whom."""

    name: str
    place: Callable[[Path], Any]
    is_stopped: bool = False
    ends_driver: bool = False


def ways() -> list[EngineWay]:
    """All of them."""
    return [
        EngineWay("local:2, a worker", local_place),
        EngineWay("local:2, a worker stopped", local_place, is_stopped=True),
        EngineWay("Dask, a worker", dask_place),
        EngineWay("Dask, a worker stopped, taken for dead", dask_place, is_stopped=True),
        EngineWay("Dask, the scheduler, same call again", scheduler_place, ends_driver=True),
    ]


def report(root: Path, kills: int, random: np.random.Generator, chosen: Sequence[EngineWay]) -> Iterator[str]:
    """Yield a row of the table for each of the ways `chosen`."""
    encode = encoder(root)
    start = time.monotonic()
    expected = encode(None)
    seconds = time.monotonic() - start
    for way in chosen:
        hit, equal = 0, 0
        with ExitStack() as stack:
            place = None
            for _ in range(kills):
                place = place or stack.enter_context(way.place(root))
                with struck(place, way, random.uniform(0, seconds)) as met:
                    found = survived(encode, place.engine, way)
                if way.ends_driver and met:
                    stack.pop_all().close()
                    place = stack.enter_context(way.place(root))
                equal += (encode(place.engine) if found is None else found) == expected
                hit += len(met)
        yield f"| {way.name} | {kills} | | {hit} | {kills - hit} | {'yes' if equal == kills else f'NO: {equal}'} |"


def survived(encode: Callable[[Engine], Any], engine: Engine, way: EngineWay) -> Any:
    """The store; None if the driver ended with a sentence, which only some ways may bring about."""
    try:
        return encode(engine)
    except EngineError:
        if not way.ends_driver:
            raise
        return None


def encoder(root: Path) -> Callable[[Engine | None], dict[str, bytes]]:
    """What encodes on an engine into a new store, or goes on with it, and gives its files."""
    model, images = load_model(root / "run"), np.load(root / "all.npy").transpose(0, 3, 1, 2).copy()
    stats = kl_stats(model, images)
    mask, path = LatentMask.from_keep(stats, 0.5), root / "struck.zarr"

    def encode(engine: Engine | None) -> dict[str, bytes]:
        from kill_workers import remove, tree

        encode_images(model, images, path, mask=mask, stats=stats, options=OPTIONS, engine=engine)
        files = tree(path)
        remove(path)
        return files

    return encode


@contextmanager
def struck(place: Place, way: EngineWay, delay: float) -> Iterator[list[int]]:
    """Kill or stop a process after `delay` seconds, if this has not ended by then; gives who was met."""
    met: list[int] = []
    victims = place.victims()

    def strike() -> None:
        met.append(victims[len(victims) // 2])
        os.kill(met[0], signal.SIGSTOP if way.is_stopped else signal.SIGKILL)
        if way.is_stopped:
            time.sleep(STOPPED_SECONDS)
            with suppress(ProcessLookupError):  # who takes it for dead may have killed it
                os.kill(met[0], signal.SIGCONT)

    timer = threading.Timer(delay, strike)
    timer.start()
    try:
        yield met
    finally:
        timer.cancel()
        timer.join()


@contextmanager
def local_place(root: Path) -> Iterator[Place]:
    with local_engine(shared_cores(2)) as engine:

        def victims() -> list[int]:
            list(engine.map(os.path.basename, map(str, range(8))))  # both are there
            return [child.pid for child in psutil.Process().children()]

        yield Place(engine, victims)


@contextmanager
def dask_place(root: Path) -> Iterator[Place]:
    with scheduler_place(root) as place:
        nannies = place.victims.nannies  # type: ignore[attr-defined]
        yield Place(place.engine, lambda: [worker.pid for nanny in nannies for worker in _workers_of(nanny)])


def _workers_of(nanny: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The worker that a nanny starts again and again, once it is there."""
    while nanny.poll() is None:
        found = [p for p in psutil.Process(nanny.pid).children() if "spawn_main" in " ".join(p.cmdline())]
        if found:
            return found
        time.sleep(0.1)
    raise SystemExit(f"a Dask worker ended with code {nanny.returncode}")


@dataclass(frozen=True)
class _Scheduler:
    process: subprocess.Popen[bytes]
    nannies: list[subprocess.Popen[bytes]]

    def __call__(self) -> list[int]:
        return [self.process.pid]


@contextmanager
def scheduler_place(root: Path) -> Iterator[Place]:
    """A scheduler and two workers, each a command of its own."""
    file = root / "scheduler.json"
    file.unlink(missing_ok=True)
    common = ["--scheduler-file", str(file), "--no-dashboard"]
    ttl = f"{TTL_SECONDS}s"
    with ExitStack() as stack:
        scheduler = stack.enter_context(_command(["scheduler", *common, "--host", "127.0.0.1", "--port", "0"], ttl))
        while not _is_whole(file):
            if scheduler.poll() is not None:
                raise SystemExit(f"the Dask scheduler ended with code {scheduler.returncode}")
            time.sleep(0.05)
        worker = ["worker", *common, "--nthreads", "1", "--memory-limit", "0", "--host", "127.0.0.1"]
        nannies = [stack.enter_context(_command(worker, ttl)) for _ in range(2)]
        with engine_on(str(file)) as engine:
            yield Place(engine, _Scheduler(scheduler, nannies))


def _is_whole(file: Path) -> bool:
    try:
        return bool(json.loads(file.read_text()))
    except (FileNotFoundError, ValueError):  # the scheduler is writing it
        return False


@contextmanager
def _command(arguments: list[str], ttl: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": ttl}
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    process = subprocess.Popen([sys.executable, "-m", "dask", *arguments], **quiet)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
