"""Peak memory of `hvae-codec encode` or `analyze-kl` against the number of images, each in a process of its own.

    python benchmarks/command_memory.py encode --model runs/latest --images 5000 50000
    python benchmarks/command_memory.py analyze-kl --model runs/latest --images 1112 22224

analyze-kl ranks on nine tenths of the images and measures two cutoffs on the rest.

Folders of hard links to the patches of `sample-data` stand for large data sets. Memory should hardly grow with them:
what does are names and sizes of files, not pixels.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from conditions import conditions
from rich.console import Console
from rich.table import Table

from hvae_codec.config import load_config

# ru_maxrss of a process is never below that of its parent, so this one imports little and hands all work to children.
CHILD = """
import resource, sys
from hvae_codec_cli.app import main
try:
    main(sys.argv[2:])
finally:
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1)
    open(sys.argv[1], "w").write(str(kilobytes))
"""


@dataclass(frozen=True)
class Measurement:
    """One encode."""

    images: int
    megabytes: float
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["encode", "analyze-kl"])
    parser.add_argument("--model", type=Path, default=Path("runs/latest"), help="run whose model encodes")
    parser.add_argument("--images", type=int, nargs="+", default=[5_000, 50_000], help="sizes of the data sets")
    parser.add_argument("--keep", help="shares of the latent dimensions to keep (encode 3%%, analyze-kl 3%%,100%%)")
    parser.add_argument("--batch-size", type=int, default=64)
    arguments = parser.parse_args()
    size = load_config(arguments.model / "config.json").model.image_size
    with tempfile.TemporaryDirectory(prefix="command_memory-") as name:
        folder = Path(name)
        run_command(folder / "memory", ["sample-data", str(folder / "patches"), "--size", str(size)])
        keep = arguments.keep or {"encode": "3%", "analyze-kl": "3%,100%"}[arguments.command]
        options = ["--model", str(arguments.model.resolve()), "--keep", keep]
        options += ["--batch-size", str(arguments.batch_size)]
        rows = [measure(folder, arguments.command, count, options) for count in arguments.images]
    outputs = ["OUT"] if arguments.command == "encode" else ["--out", "OUT", "--images", "IMAGES"]
    command = shlex.join(["hvae-codec", arguments.command, "DATA", *outputs, *options])
    print(f"{conditions()}\n{command}")
    Console().print(as_table(rows))


def measure(folder: Path, command: str, images: int, options: Sequence[str]) -> Measurement:
    data, out = folder / f"data{images}", str(folder / f"{images}.out")
    link_images(folder / "patches", data, images)
    outputs = [out] if command == "encode" else ["--out", out, "--images", str(images)]
    started = time.monotonic()
    kilobytes = run_command(folder / "memory", [command, str(data), *outputs, *options])
    return Measurement(images, kilobytes / 1024, time.monotonic() - started)


def link_images(patches: Path, data: Path, count: int) -> None:
    """`count` files in folders of 1,000, hard links to the patches in turn."""
    files = sorted(patches.rglob("*.png"))
    for k, source in enumerate(islice(cycle(files), count)):
        target = data / f"{k // 1000:04d}" / f"{k:08d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, target)


def run_command(report: Path, arguments: Sequence[str]) -> int:
    """Peak resident memory, in kilobytes, of `hvae-codec` with `arguments`."""
    subprocess.run([sys.executable, "-c", CHILD, str(report), *arguments], check=True, stdout=subprocess.DEVNULL)
    return int(report.read_text())


def as_table(rows: Sequence[Measurement]) -> Table:
    ratio = rows[-1].megabytes / rows[0].megabytes
    table = Table(caption=f"{rows[-1].images / rows[0].images:.1f} times the images, {ratio:.3f} times the memory")
    for heading in ("images", "peak memory, MiB", "seconds", "images/s"):
        table.add_column(heading, justify="right")
    for row in rows:
        cells = (f"{row.images:,}", f"{row.megabytes:,.1f}", f"{row.seconds:,.1f}", f"{row.images / row.seconds:,.1f}")
        table.add_row(*cells)
    return table


if __name__ == "__main__":
    main()
