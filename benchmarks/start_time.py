"""How long commands that need no model take, and their peak memory, each in a process of its own.

    python benchmarks/start_time.py --store out.zarr

Times are the best of several: what the machine does besides only adds to them.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conditions import conditions
from rich.console import Console
from rich.table import Table

STORE = Path(__file__).parents[1] / "tests" / "golden" / "stores" / "variate-int.zarr"
LIMIT_SECONDS, LIMIT_MIB = 0.6, 120.0


@dataclass(frozen=True)
class Start:
    """One command, run several times."""

    command: str
    seconds: float
    mebibytes: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", default=str(STORE), help="store to describe and verify (a golden one)")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    commands = [["--help"], ["--version"], ["presets"], ["info", arguments.store], ["verify", arguments.store]]
    print(conditions())
    Console().print(as_table([measure(command, arguments.repeats) for command in commands]))


def measure(command: Sequence[str], repeats: int) -> Start:
    runs = [run(command) for _ in range(repeats)]
    name = " ".join(Path(word).name for word in command)
    return Start(name, min(seconds for seconds, _ in runs), max(mebibytes for _, mebibytes in runs))


def run(command: Sequence[str]) -> tuple[float, float]:
    """Seconds and peak resident MiB of `hvae-codec` with `command`."""
    started = time.monotonic()
    arguments = [sys.executable, "-m", "hvae_codec", *command]
    quiet = [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_WRONLY, 0) for stream in (1, 2)]
    _, status, usage = os.wait4(os.posix_spawn(sys.executable, arguments, os.environ, file_actions=quiet), 0)
    if status:
        raise SystemExit(f"hvae-codec {' '.join(command)} failed")
    return time.monotonic() - started, usage.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def as_table(rows: Sequence[Start]) -> Table:
    table = Table(caption=f"to be at most {LIMIT_SECONDS} s and {LIMIT_MIB:.0f} MiB on an idle machine")
    table.add_column("hvae-codec")
    for heading in ("seconds", "peak memory, MiB"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(row.command, f"{row.seconds:.2f}", f"{row.mebibytes:.0f}")
    return table


if __name__ == "__main__":
    main()
