"""Stops every long command by signals at random moments, and looks at what is left and whether it can be run again.

    python benchmarks/signals.py [--moments 5] [--images 300] [--commands train,encode]

Each try is in a fresh copy of a folder with images, a run and a store. After the signal: the exit code is the signal's,
there is no traceback, and what was there can be read as before. The same command then gives the files of an unbroken
one, and nothing temporary is left. A command that was done before the signal counts as such.
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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from kill_and_resume import CONFIG, patches
from results import print_table

from hvae_codec import open_store
from hvae_codec.errors import HvaeCodecError
from hvae_codec.model.checkpoint import load_model

SIGNALS = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
TEMPORARY = ("*.partial", ".*.lock", "*.locks", "*.replaced")
STORE = ["--batch-size", "8", "--model", "run"]
TRAIN = ["--save-every", "20", "--eval-every", "20", "--log-every", "1", "--no-tensorboard"]
COMMANDS = {
    "train": ["train", "all.npy", "--config", "small.toml", "--steps", "60", "--out", "result", *TRAIN],
    "analyze-kl": ["analyze-kl", "all.npy", "--keep", "5%,20%", "--out", "result", *STORE],
    "encode": ["encode", "all.npy", "result", "--keep", "50%", "--shard", "8", *STORE],
    "decode": ["decode", "store.zarr", "result", *STORE],
    "append": ["append", "more.npy", "store.zarr", *STORE],
    "repair": ["repair", "damaged.zarr", "all.npy", *STORE],
    "prune": ["prune", "all.npy", "--keep", "20%", "--steps", "60", "--out", "result", "--model", "run", *TRAIN],
    "sample": ["sample", "--n", "1000", "--out", "result", *STORE],
}
RESULTS = {"append": "store.zarr", "repair": "damaged.zarr"}
"""What a command changes, if it makes no `result`."""


@dataclass(frozen=True)
class Unbroken:
    """What a command does that is left alone."""

    files: dict[str, bytes]
    start: float  # seconds until the command line is there, and signals are heard
    seconds: float  # of the whole command


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=5, help="of each signal and command")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--commands", default=",".join(COMMANDS), help="separated by commas")
    options = parser.parse_args(arguments)
    random = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory(prefix="signals-") as folder:
        root = Path(folder)
        prepare(root / "base", options.images)
        rows, found = [], []
        for command in options.commands.split(","):
            unbroken = leave_alone(root, command)
            row = [command]
            for number in SIGNALS:
                tries = [stop(root, command, number, unbroken, random) for _ in range(options.moments)]
                row.append(f"{sum(not what for what in tries)} of {len(tries)}")
                found += [f"{command}, {number.name}: {what}" for what in tries if what]
            rows.append(row)
            print(*row, sep=" | ", file=sys.stderr, flush=True)
    print_table("Stopped commands that left all in order", ["command", *(s.name for s in SIGNALS)], rows)
    print("\n".join(found))


def prepare(base: Path, images: int) -> None:
    """Images, a short run, a store, and one that is damaged."""
    base.mkdir()
    (base / "small.toml").write_text(CONFIG)
    np.save(base / "all.npy", patches(images))
    np.save(base / "more.npy", patches(images)[: images // 2, :, ::-1])
    finish(base, ["train", "all.npy", "--config", "small.toml", "--steps", "5", "--out", "run", "--no-tensorboard"])
    finish(base, ["encode", "all.npy", "store.zarr", "--keep", "50%", "--shard", "8", *STORE])
    shutil.copytree(base / "store.zarr", base / "damaged.zarr")
    for shard in sorted(path for path in (base / "damaged.zarr").glob("z*/c/**/*") if path.is_file()):
        shard.write_bytes(shard.read_bytes()[:-1] + b"?")


def leave_alone(root: Path, command: str) -> Unbroken:
    """Run a command from its start to its end; what it reads from the disk is in memory since `prepare`."""
    fresh(root)
    begun = time.monotonic()
    finish(root / "work", ["--version"])
    start = time.monotonic() - begun
    finish(root / "work", COMMANDS[command])
    seconds = time.monotonic() - begun - start
    return Unbroken(result(root, command), start, seconds)


def stop(root: Path, command: str, number: signal.Signals, unbroken: Unbroken, random: np.random.Generator) -> str:
    """Say what is not in order after a signal at a random moment; nothing if all is."""
    fresh(root)
    before = others(root, command)
    moment = random.uniform(unbroken.start, max(unbroken.seconds, unbroken.start + 0.1))
    process = begin(root / "work", COMMANDS[command])
    time.sleep(moment)
    process.send_signal(number)
    errors = process.communicate()[1].decode(errors="replace")
    where = f"at {moment:.2f} of {unbroken.seconds:.2f} s, exit code {process.returncode}"
    # Before the command line is there, and after its work is done, a signal ends the process as it ends any other.
    if process.returncode not in (0, -number, 128 + number):
        return f"{where}: {errors[-300:]!r}"
    if "Traceback" in errors:
        return f"{where}: traceback: {errors[-300:]!r}"
    for look in (lambda: others(root, command) == before, lambda: readable(root / "work")):
        if not look():
            return f"{where}: what was there is not as before"
    if process.returncode and result(root, command) != unbroken.files:
        again = begin(root / "work", COMMANDS[command])
        errors = again.communicate()[1].decode(errors="replace")
        if again.returncode:
            return f"{where}: the same command again: {errors[-300:]!r}"
    return in_order(root, command, unbroken, where)


def in_order(root: Path, command: str, unbroken: Unbroken, where: str) -> str:
    """Say what is unlike an unbroken run, or left over."""
    ours = result(root, command)
    unlike = sorted(name for name in ours.keys() | unbroken.files.keys() if ours.get(name) != unbroken.files.get(name))
    if unlike:
        return f"{where}: not the files of an unbroken one: {unlike[:5]}"
    left = sorted({str(p.relative_to(root / "work")) for name in TEMPORARY for p in (root / "work").rglob(name)})
    left = [name for name in left if not name.startswith(("run/", "result/.lock"))]  # a run keeps its lock
    return f"{where}: left over: {left[:5]}" if left else ""


def fresh(root: Path) -> None:
    shutil.rmtree(root / "work", ignore_errors=True)
    shutil.copytree(root / "base", root / "work", symlinks=True)


def begin(folder: Path, command: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "hvae_codec", *command],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(folder: Path, command: Sequence[str]) -> None:
    process = begin(folder, command)
    errors = process.communicate()[1]
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(command)}: {errors.decode(errors='replace')}")


def result(root: Path, command: str) -> dict[str, bytes]:
    """The files that the command makes; of a training, those that do not hold the time it took, and the last state."""
    place = root / "work" / RESULTS.get(command, "result")
    found = files(place)
    if command in ("train", "prune"):  # one that was stopped has a state of that step, too
        last = max((p.stem for p in found if p.parent.name == "state"), default="")
        found = [p for p in found if p.suffix not in (".csv", ".json") and (p.parent.name != "state" or p.stem == last)]
    return {str(p.relative_to(place)): p.read_bytes() for p in found}


def others(root: Path, command: str) -> dict[str, bytes]:
    """What was there and is none of the command's business; a run gets its ranking."""
    place = root / "base"
    names = [path.relative_to(place) for path in files(place)]
    kept = [name for name in names if name.parts[0] != RESULTS.get(command) and "analysis" not in name.parts]
    return {str(name): (root / "work" / name).read_bytes() for name in kept if (root / "work" / name).exists()}


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def readable(work: Path) -> bool:
    """Whether the store and the run can be opened."""
    try:
        store, model = open_store(work / "store.zarr"), load_model(work / "run")
        store.latents(len(store) - 1)
    except (HvaeCodecError, OSError):
        return False
    return all(bool(torch.isfinite(weight).all()) for weight in model.parameters())


if __name__ == "__main__":
    main()
