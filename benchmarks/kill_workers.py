"""Kills encodes with kill -9 at random moments, goes on each time, and compares the store with an unbroken run's.

    python benchmarks/kill_workers.py [--kills 50] [--images 600] [--only "local:2, a worker" append]

Ways: one process; two workers of which one is killed; a driver and its processes; an append. Going on is the same
command again. A command that was done before it could be killed is counted as such, and its store is compared and made
anew. Then workers and schedulers are killed, and the driver is not (kill_on_engines.py). A model of random weights and
one thread encode the same patches of a photograph.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import kill_on_engines
import numpy as np
import skimage.data
import torch
from conditions import conditions

from hvae_codec.config import config_from_dict
from hvae_codec.model.checkpoint import save_model
from hvae_codec.model.hvae import HVAE

STAGE = {"width": 16, "variates": 4, "bottleneck": 0.5}
CONFIG = {
    "stages": [STAGE | {"resolution": 16}, STAGE | {"resolution": 8, "linked_blocks": 2}, STAGE | {"resolution": 1}],
    "model": {"resolution": 16, "mixtures": 2, "middle_layers": 1},
}
ENCODE = ["--keep", "50%", "--shard", "8", "--batch-size", "8", "--evaluate", "all", "--model", "run"]


@dataclass(frozen=True)
class Way:
    """One of the ways to write a store."""

    name: str
    killed: Sequence[str]
    """The command that is killed and run again."""
    before: Sequence[str] = ()
    """What writes the store that it adds to."""
    beside: Sequence[str] = ()
    """What is started at the same time as its first run, and left alone."""
    moments: list[str] = field(default_factory=list)
    """For each kill, what it met."""


AnyWay = TypeVar("AnyWay", Way, kill_on_engines.EngineWay)

WAYS = (
    Way("one process", ["encode", "all.npy", "killed.zarr", *ENCODE]),
    Way(
        "two workers, one killed",
        ["encode", "all.npy", "killed.zarr", *ENCODE, "--worker", "0/2"],
        beside=["encode", "all.npy", "killed.zarr", *ENCODE, "--worker", "1/2"],
    ),
    Way("the driver of --on local:2", ["encode", "all.npy", "killed.zarr", *ENCODE, "--on", "local:2"]),
    Way(
        "append",
        ["append", "second.npy", "killed.zarr", "--batch-size", "8", "--model", "run"],
        before=["encode", "first.npy", "killed.zarr", *ENCODE],
    ),
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="each way")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--only", nargs="+", help="names of ways; all if not given")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="kill_workers-") as folder:
        root = Path(folder)
        prepare(root, options.images)
        random = np.random.default_rng(options.seed)
        print(
            f"{conditions()}\n\n| what | killed | while it starts | while it writes | done before | equal to unbroken |"
        )
        print("|---|--:|--:|--:|--:|---|")
        for way in chosen(WAYS, options.only):
            equal = kill_again_and_again(root, way, options.kills, random)
            starting, writing, done = (way.moments.count(what) for what in ("starts", "writes", "done"))
            print(f"| {way.name} | {options.kills} | {starting} | {writing} | {done} | {'yes' if equal else 'NO'} |")
        for row in kill_on_engines.report(root, options.kills, random, chosen(kill_on_engines.ways(), options.only)):
            print(row, flush=True)


def chosen(ways: Sequence[AnyWay], names: Sequence[str] | None) -> list[AnyWay]:
    """Those that were asked for."""
    return [way for way in ways if names is None or way.name in names]


def prepare(root: Path, images: int) -> None:
    """A model, its ranking, and images."""
    torch.manual_seed(0)
    config = config_from_dict(CONFIG)
    save_model(root / "run", config, HVAE(config.model).state_dict())
    pixels, places = skimage.data.astronaut(), np.random.default_rng(0).integers(0, 496, (images, 2))
    patches = np.stack([pixels[y : y + 16, x : x + 16] for y, x in places])
    for name, part in (("all", patches), ("first", patches[: images // 3]), ("second", patches[images // 3 :])):
        np.save(root / f"{name}.npy", part)
    finish(root, ["encode", "all.npy", "ranked.zarr", *ENCODE])


def kill_again_and_again(root: Path, way: Way, kills: int, random: np.random.Generator) -> bool:
    """Whether every store that came of it has the bytes of an unbroken one."""
    expected = unbroken(root, way)
    begin(root, way)
    equal, beside = True, None
    for number in range(kills):
        process = start(root, way.killed)
        beside = start(root, way.beside) if way.beside and not committed(root) else beside
        wait_for_row_groups(root, process, committed(root) + int(random.integers(0, 6)) if number % 5 else 0)
        time.sleep(random.uniform(0.0, 3.0 if number % 5 == 0 else 0.05))
        writes = (root / "killed.zarr.partial").exists()
        process.kill()
        done = process.wait() != -signal.SIGKILL
        way.moments.append("done" if done else "writes" if writes else "starts")
        if done:
            settle(beside)
            finish(root, way.killed) if not (root / "killed.zarr").exists() else None
            equal &= tree(root / "killed.zarr") == expected
            begin(root, way)
    settle(beside)
    finish(root, way.killed)
    return equal and tree(root / "killed.zarr") == expected


def begin(root: Path, way: Way) -> None:
    """Where there is nothing, or the store that is added to."""
    remove(root / "killed.zarr")
    if way.before:
        finish(root, way.before)


def unbroken(root: Path, way: Way) -> dict[str, bytes]:
    begin(root, way)
    if way.beside:
        finish(root, way.beside)
    finish(root, way.killed)
    return tree(root / "killed.zarr")


def start(root: Path, command: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "hvae_codec", *command],
        cwd=root,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def finish(root: Path, command: Sequence[str]) -> None:
    if start(root, command).wait():
        raise SystemExit(f"failed: {' '.join(command)}")


def settle(process: subprocess.Popen[bytes] | None) -> None:
    if process is not None:
        process.wait()


def wait_for_row_groups(root: Path, process: subprocess.Popen[bytes], count: int) -> None:
    while committed(root) < count and process.poll() is None:
        time.sleep(0.001)


def committed(root: Path) -> int:
    return sum(1 for _ in (root / "killed.zarr.partial").glob("committed/c/*"))


def remove(path: Path) -> None:
    """A store, and what is beside it while it is written."""
    for leftover in path.parent.glob(f"{path.name}*"):
        shutil.rmtree(leftover)


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


if __name__ == "__main__":
    main()
