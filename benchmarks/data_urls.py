"""How fast images are read from a zip, a tar and Parquet files in a bucket, and in how many requests.

    python benchmarks/data_urls.py --images 10000 --delay 20

The bucket is a server in a process on this machine, which waits `delay` milliseconds before it answers. Images are
those of data_sources.py: PNG files of 1.6 KB, decoded. In order they are read as `encode` does, in batches of 64; at
random as `train` does beyond its cache, and from Parquet not at all. Memory is the peak of a process that reads all in
order. The same files on this machine are read in turn with those in the bucket.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from conditions import conditions
from data_sources import PATCHES, SIZE, patch, png, write
from range_server import served
from rich.console import Console
from rich.table import Table

from hvae_codec.data.archives import ArchiveContainer
from hvae_codec.data.sources import ImageSource, open_images
from hvae_codec.train.batches import BatchStream, default_workers

BATCH = 64

MEMORY = """
import resource, sys
from hvae_codec.data.sources import open_images
for batch in open_images(sys.argv[1], size=32, channels=3).batches(64): pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--delay", type=float, default=20, help="milliseconds before an answer")
    parser.add_argument("--steps", type=int, default=40, help="batches at random")
    arguments = parser.parse_args()
    print(f"{conditions()}\npython benchmarks/data_urls.py --images {arguments.images} --delay {arguments.delay:g}")
    with tempfile.TemporaryDirectory(prefix="data_urls-") as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        paths = containers(Path(folder), arguments.images)
        with served(Path(folder), arguments.delay) as requests:
            table = Table(
                "container", "opened, s", "in order, images/s", "at random, images/s", "memory, MiB", "requests"
            )
            for row in measure(Path(folder), paths, requests, arguments.steps):
                table.add_row(*row)
    Console(width=140).print(table)


def containers(folder: Path, images: int) -> dict[str, Path]:
    """Write a zip, a tar and a Parquet file of the same images."""
    paths = write(folder, images, ("stored zip", "tar"))
    files = [png(patch(i)) for i in range(PATCHES)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": files[i % PATCHES], "path": f"{i:08d}.png"} for i in range(images)]
    paths["Parquet"] = folder / "x.parquet"
    pyarrow.parquet.write_table(pa.table({"image": pa.array(rows, kind)}), paths["Parquet"], row_group_size=1000)
    return paths


def measure(folder: Path, paths: dict[str, Path], requests: Any, steps: int) -> Iterator[tuple[str, ...]]:
    for kind, path in paths.items():
        for where, name in (("here", str(path)), ("bucket", f"s3://images/{path.relative_to(folder).as_posix()}")):
            before = requests.value
            opened, source = timed(lambda name=name: open_images(name, size=SIZE, channels=3))
            opening, before = requests.value - before, requests.value
            seconds, _ = timed(lambda source=source: [len(batch) for batch in source.batches(BATCH)])
            in_order, before = requests.value - before, requests.value
            is_archive = isinstance(source.container, ArchiveContainer)
            at_random, _ = timed(lambda source=source: read_at_random(source, steps)) if is_archive else (0.0, None)
            randomly = (requests.value - before) * 1000 / (steps * BATCH)
            yield (
                f"{kind}, {where}",
                f"{opened:.2f}",
                f"{len(source) / seconds:,.0f}",
                f"{steps * BATCH / at_random:,.0f}" if is_archive else "-",
                f"{memory(name):,.0f}",
                f"{opening} to open; for 1,000 images {in_order * 1000 / len(source):.1f} and {randomly:.0f}",
            )
    yield from one_by_one(folder, paths["tar"])


def one_by_one(folder: Path, path: Path) -> Iterator[tuple[str, ...]]:
    """The same without reading ahead."""
    source = open_images(f"s3://images/{path.relative_to(folder).as_posix()}", size=SIZE, channels=3)
    source.container.files.prefetch = lambda wanted: None  # type: ignore[attr-defined]
    images = min(1_000, len(source))
    seconds, _ = timed(lambda: [len(batch) for batch in source.batches(BATCH, stop=images)])
    yield "tar, bucket, nothing read ahead", "", f"{images / seconds:,.0f}", "", "", "for 1,000 images 1000"


def read_at_random(source: ImageSource, steps: int) -> None:
    stream = BatchStream(source, BATCH, 0, horizontal_flip=False, workers=default_workers(), cache_bytes=0)
    for step in range(1, steps + 1):
        stream.batch(step)
    stream.close()


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def memory(name: str) -> float:
    """Measure the peak memory of a process that reads all images in order, in MiB."""
    shell = [sys.executable, "-c", "import subprocess, sys; print(subprocess.check_output(sys.argv[1:], text=True))"]
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return int(subprocess.check_output([*shell, sys.executable, "-c", MEMORY, name], text=True)) / unit


if __name__ == "__main__":
    main()
