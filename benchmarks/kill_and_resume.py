"""Kills a training with kill -9 at random moments, goes on each time, and compares it with an unbroken one, bit by bit.

    python benchmarks/kill_and_resume.py [--kills 20] [--steps 800]

Going on is the same command again. Both runs see the same 2,000 patches of a photograph, on one thread.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import skimage.data
from conditions import conditions

CONFIG = """
stages = [
    {resolution = 16, width = 16, variates = 4, bottleneck = 0.5},
    {resolution = 8, width = 16, variates = 4, bottleneck = 0.5, linked_blocks = 2},
    {resolution = 1, width = 16, variates = 4, bottleneck = 0.5, kernel = 1},
]
[model]
resolution = 16
mixtures = 2
middle_layers = 1
[train]
batch_size = 8
ema_decay = 0.9
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "small.toml").write_text(CONFIG)
        np.save(root / "data.npy", patches(2000))
        start(root, "unbroken", options.steps).wait()
        kills = kill_again_and_again(root, options.kills, options.steps, np.random.default_rng(options.seed))
        report(root, kills)


def patches(count: int) -> np.ndarray:
    """uint8 [count, 16, 16, 3] of a photograph."""
    pixels = skimage.data.astronaut()
    places = np.random.default_rng(0).integers(0, 496, (count, 2))
    return np.stack([pixels[y : y + 16, x : x + 16] for y, x in places])


def start(root: Path, run: str, steps: int) -> subprocess.Popen[bytes]:
    command = ["train", "data.npy", "--config", "small.toml", "--steps", str(steps), "--out", run]
    often = ["--log-every", "1", "--save-every", "10", "--eval-every", "50"]
    return subprocess.Popen(
        [sys.executable, "-m", "hvae_codec", *command, *often],
        cwd=root,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill_again_and_again(root: Path, kills: int, steps: int, random: np.random.Generator) -> list[tuple[str, int, int]]:
    """When each kill came, the last step whose row was written then, and the step of the newest whole state."""
    done = []
    for kill in range(kills):
        process = start(root, "killed", steps)
        if kill % 5 == 4:
            when = "while it starts"
            time.sleep(random.uniform(0.0, 3.0))
        else:
            when = "while it trains"
            wait_for_row(root, process, min(newest_state(root) + int(random.integers(1, 60)), steps - 1))
            time.sleep(random.uniform(0.0, 0.1))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        done.append((when, last_row(root), newest_state(root)))
    start(root, "killed", steps).wait()
    return done


def wait_for_row(root: Path, process: subprocess.Popen[bytes], step: int) -> None:
    """Until metrics.csv of this process, which first drops later rows, holds a step."""
    begun = time.time()
    path = root / "killed" / "metrics.csv"
    while process.poll() is None:
        if path.exists() and path.stat().st_mtime > begun and last_row(root) >= step:
            return
        time.sleep(0.002)


def last_row(root: Path) -> int:
    path = root / "killed" / "metrics.csv"
    steps = [line.split(",")[0] for line in path.read_text().splitlines()[1:]] if path.exists() else []
    return int(steps[-1]) if steps and steps[-1].isdigit() else 0


def newest_state(root: Path) -> int:
    states = sorted((root / "killed" / "state").glob("step-*.json"))
    return int(states[-1].stem.removeprefix("step-")) if states else 0


def report(root: Path, kills: list[tuple[str, int, int]]) -> None:
    print(f"{conditions()}\n\n| kill | when | last row | goes on from |\n|--:|---|--:|--:|")
    for number, (when, row, state) in enumerate(kills, 1):
        print(f"| {number} | {when} | {row} | {state} |")
    print("\n| compared with the unbroken run | equal |\n|---|---|")
    ours, expected = rows(root / "killed"), rows(root / "unbroken")
    equal = sum(a == b for a, b in zip(ours, expected, strict=False))
    print(f"| rows of metrics.csv, all digits, without seconds | {equal} of {len(expected)} |")
    newest = sorted(path.name for path in (root / "unbroken" / "state").glob("*.safetensors"))[-1]
    for name in ("validation.csv", "model.safetensors", f"state/{newest}"):
        digests = {hashlib.sha256((root / run / name).read_bytes()).digest() for run in ("killed", "unbroken")}
        print(f"| bytes of {name} | {'yes' if len(digests) == 1 else 'NO'} |")


def rows(run: Path) -> list[list[str]]:
    with open(run / "metrics.csv", newline="") as file:
        return [row[:-1] for row in csv.reader(file)][1:]


if __name__ == "__main__":
    main()
