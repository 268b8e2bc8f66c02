"""How long it takes to get an image's bytes out of a folder, a zip, a tar, and the pixels out of an .npz.

    python benchmarks/data_sources.py --images 10000

The images are 64 patches of photographs, 32 x 32, as PNG files of 1.6 KB on average, again and again. All is read from
the disk's cache in memory, and times are those of the processor, so that other work on the machine counts little.
Containers are read in turn, a few hundred images each, over and over; figures are medians. Memory is the peak of a
process that only opens the container, less that of one that opens none.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import skimage.data
from conditions import conditions
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from hvae_codec.data.containers import Container, FileContainer
from hvae_codec.data.sources import open_images

SIZE, PATCHES = 32, 64
ROUND = 250  # images read from one container before the next one's turn

# ru_maxrss of a process is never below that of its parent, so a child starts another one that imports little.
MEMORY = """
import resource, sys
from hvae_codec.data.sources import open_images
source = [open_images(path, size=32, channels=3) for path in sys.argv[1:]]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@dataclass
class Measured:
    """Figures of one kind of container."""

    kind: str
    first: float  # seconds to open it
    again: float  # seconds to open it once more
    in_order: list[float] = field(default_factory=list)  # microseconds per image, of each round
    at_random: list[float] = field(default_factory=list)
    pixels: list[float] = field(default_factory=list)  # at random, decoded
    mebibytes: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=12, help="of each measurement")
    arguments = parser.parse_args()
    print(f"{conditions()}\npython benchmarks/data_sources.py --images {arguments.images}")
    with tempfile.TemporaryDirectory(prefix="data_sources-") as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"  # also of the processes that are started
        rows = measure(Path(folder), arguments.images, arguments.rounds)
    Console(width=130).print(as_table(rows))


def measure(folder: Path, images: int, rounds: int) -> list[Measured]:
    """Make the containers in `folder`, and measure all of them."""
    paths = write(folder, images)
    empty = memory()
    measured, containers = [], []
    for kind, path in paths.items():
        first, _ = timed(lambda path=path: open_images(path, size=SIZE, channels=3))
        again, source = timed(lambda path=path: open_images(path, size=SIZE, channels=3))
        measured.append(Measured(kind, first, again, mebibytes=memory(path) - empty))
        containers.append(source.container)
    generator = np.random.default_rng(0)
    for turn in range(rounds):
        for row, container in zip(measured, containers, strict=True):
            start = turn * ROUND % max(images - ROUND, 1)
            row.in_order.append(per_image(container, np.arange(start, min(start + ROUND, images)), content))
            at_random = generator.integers(0, images, ROUND)
            row.at_random.append(per_image(container, at_random, content))
            row.pixels.append(per_image(container, at_random, pixels))
    return measured


def write(folder: Path, images: int) -> dict[str, Path]:
    """Write the same images into every kind of container."""
    patches = [patch(i) for i in range(PATCHES)]
    files = [png(pixels) for pixels in patches]
    names = [f"{i // 1000:04d}/{i:08d}.png" for i in range(images)]
    kinds = ("folder", "stored zip", "deflated zip", "tar", "stored npz")
    paths = {kind: folder / f"x{i}{end}" for i, (kind, end) in enumerate(zip(kinds, ENDINGS, strict=True))}
    for i, name in enumerate(names):
        (paths["folder"] / name).parent.mkdir(parents=True, exist_ok=True)
        (paths["folder"] / name).write_bytes(files[i % PATCHES])
    for kind, method in (("stored zip", zipfile.ZIP_STORED), ("deflated zip", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(paths[kind], "w", method) as archive:
            for i, name in enumerate(names):
                archive.writestr(name, files[i % PATCHES])
    with tarfile.open(paths["tar"], "w") as tar:
        for i, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = len(files[i % PATCHES])
            tar.addfile(info, io.BytesIO(files[i % PATCHES]))
            tar.members.clear()
    write_npz(paths["stored npz"], np.stack(patches), images)
    return paths


def write_npz(path: Path, patches: NDArray[np.uint8], images: int) -> None:
    """Write what `numpy.savez` would, but not from memory."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (images, *patches.shape[1:])}
    with zipfile.ZipFile(path, "w") as archive, archive.open("images.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for first in range(0, images, PATCHES):
            file.write(patches[: images - first].tobytes())


ENDINGS = ("", ".stored.zip", ".deflated.zip", ".tar", ".npz")


def patch(number: int) -> NDArray[np.uint8]:
    left, top = 7 * number, 5 * number
    return skimage.data.astronaut()[top : top + SIZE, left : left + SIZE]


def png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def content(container: Container, position: int) -> object:
    """Get an image as it is in the container: a file's bytes, or an array's pixels."""
    if isinstance(container, FileContainer):
        with container.open(position) as file:
            return file.read()
    return pixels(container, position)


def pixels(container: Container, position: int) -> object:
    return container.read(np.array([position]))


def per_image(container: Container, positions: NDArray, get: Callable[[Container, int], object]) -> float:
    """Measure microseconds per image."""
    seconds, _ = timed(lambda: [get(container, i) for i in positions.tolist()])
    return seconds / len(positions) * 1e6


def timed(work: Callable[[], object]) -> tuple[float, object]:
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def memory(*paths: Path) -> float:
    """Measure the peak memory of a process that opens `paths`, in MiB."""
    command = [sys.executable, "-c", MEMORY, *map(str, paths)]
    shell = [sys.executable, "-c", "import subprocess, sys; print(subprocess.check_output(sys.argv[1:], text=True))"]
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return int(subprocess.check_output([*shell, *command], text=True)) / unit


def as_table(rows: list[Measured]) -> Table:
    table = Table(caption="medians")
    headings = (
        "container",
        "in order, µs",
        "at random, µs",
        "and decoded, µs",
        "open first, s",
        "again, s",
        "memory, MiB",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "container" else "right")
    for row in rows:
        times = [f"{statistics.median(values):,.0f}" for values in (row.in_order, row.at_random, row.pixels)]
        table.add_row(row.kind, *times, f"{row.first:.2f}", f"{row.again:.2f}", f"{row.mebibytes:,.1f}")
    return table


if __name__ == "__main__":
    main()
