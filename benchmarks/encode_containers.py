"""Encodes the same images out of a folder, a zip and a tar: equal latents, and about equal peak memory.

    python benchmarks/encode_containers.py --model runs/latest --images 100000

Each container is encoded by a process of its own, from a cache that knows none of them. The stores' latents are
compared number by number, and their digests of row groups, too.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from command_memory import run_command
from data_sources import ENDINGS, write
from results import print_table

import hvae_codec

KINDS = ("folder", "stored zip", "tar")
COMPARED_AT_ONCE = 4096  # images


@dataclass(frozen=True)
class Encoded:
    """One container's store, and what it took to write it."""

    kind: str
    store: Path
    mebibytes: float  # peak of the process
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/latest"), help="run whose model encodes")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--kinds", nargs="+", choices=[*ENDINGS], default=[*KINDS], help="of container")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="encode_containers-") as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        paths = write(Path(folder), arguments.images, arguments.kinds)
        # The ranking first: the process that measures one has its memory, too.
        encode(paths[arguments.kinds[0]], Path(folder) / "first.zarr", arguments.model, "--images", ":256")
        rows = [measure(kind, path, Path(folder), arguments.model) for kind, path in paths.items()]
        same = [latents_equal(rows[0].store, row.store) for row in rows]
    least = min(row.mebibytes for row in rows)
    columns = ["container", "latents", "peak memory, MiB", "of the smallest", "images/s"]
    cells = [
        [
            row.kind,
            "equal" if equal else "DIFFERENT",
            f"{row.mebibytes:,.1f}",
            f"{row.mebibytes / least:.3f}",
            f"{arguments.images / row.seconds:,.0f}",
        ]
        for row, equal in zip(rows, same, strict=True)
    ]
    print_table(f"{arguments.images:,} images", columns, cells)


def measure(kind: str, path: Path, folder: Path, model: Path) -> Encoded:
    """Encode one container."""
    store, started = folder / f"{path.stem}.zarr", time.perf_counter()
    kilobytes = encode(path, store, model)
    return Encoded(kind, store, kilobytes / 1024, time.perf_counter() - started)


def encode(path: Path, store: Path, model: Path, *options: str) -> int:
    """Run the command; returns the peak of its memory in kilobytes."""
    words = ["encode", str(path), str(store), "--model", str(model), "--keep", "3%", "--evaluate", "none", *options]
    return run_command(store.with_suffix(".memory"), words)


def latents_equal(one: Path, other: Path) -> bool:
    """Whether two stores hold the same numbers of the same images."""
    first, second = hvae_codec.open_store(one), hvae_codec.open_store(other)
    if first.names != second.names or len(first) != len(second):
        return False
    parts = (slice(start, start + COMPARED_AT_ONCE) for start in range(0, len(first), COMPARED_AT_ONCE))
    return all(
        np.array_equal(numbers, second.latents(part)[name])
        for part in parts
        for name, numbers in first.latents(part).items()
    )


if __name__ == "__main__":
    main()
