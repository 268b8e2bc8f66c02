"""How long it takes to get an image's bytes out of a folder, a zip, a tar, a Parquet file, and the pixels of an .npz.

    python benchmarks/data_sources.py --images 10000
    python benchmarks/data_sources.py --images 1000000 --kinds parquet

The images are 64 patches of photographs, 32 x 32, as PNG files of 1.6 KB on average, again and again. All is read from
the disk's cache in memory, and times are those of the processor, so that other work on the machine counts little.
Containers are read in turn, a few hundred images each, over and over; figures are medians. Memory is the peak of a
process that only opens the container, less that of one that opens none.

*Epoch* is of the batches that training takes, of 32 images read by 4 threads, without the cache of pixels: microseconds
of the processor per image, of all threads, and images per second by the clock; medians of epochs that the containers
take in turn. At most `EPOCH_IMAGES` are read of each.
"""

from __future__ import annotations

import argparse
import functools
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import skimage.data
from conditions import conditions
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from hvae_codec.data.containers import Container, FileContainer
from hvae_codec.data.sources import ImageSource, open_images
from hvae_codec.train.batches import BatchStream

SIZE, PATCHES = 32, 64
EPOCH_IMAGES = 10_000
WINDOW_BYTES = 2**23  # that training may hold of Parquet files of 16 MB, so that they do not fit
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
    epoch: list[float] = field(default_factory=list)  # microseconds per image of training batches
    images_per_second: list[float] = field(default_factory=list)  # of these, by the clock
    mebibytes: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=12, help="of each measurement")
    parser.add_argument("--epochs", type=int, default=5, help="of each container")
    parser.add_argument("--kinds", nargs="+", choices=[*ENDINGS], default=[*ENDINGS], help="of container")
    arguments = parser.parse_args()
    print(f"{conditions()}\npython benchmarks/data_sources.py --images {arguments.images}")
    with tempfile.TemporaryDirectory(prefix="data_sources-") as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"  # also of the processes that are started
        rows = measure(Path(folder), arguments.images, arguments.rounds, arguments.epochs, arguments.kinds)
    Console(width=130).print(as_table(rows))


def measure(folder: Path, images: int, rounds: int, epochs: int, kinds: Sequence[str]) -> list[Measured]:
    """Make the containers in `folder`, and measure all of them."""
    paths = write(folder, images, kinds)
    empty = memory()
    measured, sources = [], []
    for kind, path in paths.items():
        first, _ = timed(lambda path=path: open_images(path, size=SIZE, channels=3))
        again, source = timed(lambda path=path: open_images(path, size=SIZE, channels=3))
        measured.append(Measured(kind, first, again, mebibytes=memory(path) - empty))
        sources.append(source)
    measure_images([source.container for source in sources], measured, images, rounds)
    for turn in range(epochs):
        for row, source in zip(measured, sources, strict=True):
            processor, clock = training_epoch(source, turn)
            row.epoch.append(processor * 1e6)
            row.images_per_second.append(1 / clock)
    return measured


def measure_images(containers: Sequence[Container], measured: Sequence[Measured], images: int, rounds: int) -> None:
    """Get single images out of each container in turn."""
    generator = np.random.default_rng(0)
    for turn in range(rounds):
        for row, container in zip(measured, containers, strict=True):
            start = turn * ROUND % max(images - ROUND, 1)
            row.in_order.append(per_image(container, np.arange(start, min(start + ROUND, images)), content))
            at_random = generator.integers(0, images, ROUND)
            row.at_random.append(per_image(container, at_random, content))
            row.pixels.append(per_image(container, at_random, pixels))


def training_epoch(source: ImageSource, epoch: int) -> tuple[float, float]:
    """Read an epoch of at most `EPOCH_IMAGES` images as training does: seconds per image, of processor and clock."""
    some = source.subset(np.arange(min(EPOCH_IMAGES, len(source))))
    batches = BatchStream(some, 32, 0, horizontal_flip=False, workers=4, cache_bytes=WINDOW_BYTES)
    steps = len(some) // 32
    started = time.perf_counter()
    processor, _ = timed(lambda: [batches.batch(1 + epoch * steps + step) is None for step in range(steps)])
    clock = time.perf_counter() - started
    batches.close()
    return processor / (steps * 32), clock / (steps * 32)


def write(folder: Path, images: int, kinds: Sequence[str]) -> dict[str, Path]:
    """Write the same images into these kinds of container."""
    patches = [patch(i) for i in range(PATCHES)]
    files = [png(pixels) for pixels in patches]
    paths = {kind: folder / f"x{i}{ENDINGS[kind]}" for i, kind in enumerate(kinds)}
    for kind, path in paths.items():
        if kind == "stored npz":
            write_npz(path, np.stack(patches), images)
        else:
            WRITERS[kind](path, ((f"{i // 1000:04d}/{i:08d}.png", files[i % PATCHES]) for i in range(images)))
    return paths


Files = Iterable[tuple[str, bytes]]


def write_folder(path: Path, files: Files) -> None:
    for name, content in files:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)


def write_zip(path: Path, files: Files, method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files:
            archive.writestr(name, content)


def write_tar(path: Path, files: Files) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
            tar.members.clear()


def write_parquet(path: Path, files: Files) -> None:
    """Write what Hugging Face's `datasets` does, in row groups of 100."""
    struct = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    about = {"info": {"features": {"image": {"_type": "Image"}}}}
    schema = pyarrow.schema({"image": struct}, metadata={"huggingface": json.dumps(about)})
    # Without a dictionary, as real images are all different and have none.
    with pyarrow.parquet.ParquetWriter(path, schema, use_dictionary=False) as writer:
        for rows in batched(files, 100):
            images = [{"bytes": content, "path": name} for name, content in rows]
            writer.write_table(pyarrow.table({"image": images}, schema), row_group_size=100)


def batched(files: Files, count: int) -> Iterator[list[tuple[str, bytes]]]:
    iterator = iter(files)
    while some := list(itertools.islice(iterator, count)):
        yield some


WRITERS: dict[str, Callable[[Path, Files], None]] = {
    "folder": write_folder,
    "stored zip": write_zip,
    "deflated zip": functools.partial(write_zip, method=zipfile.ZIP_DEFLATED),
    "tar": write_tar,
    "parquet": write_parquet,
}


def write_npz(path: Path, patches: NDArray[np.uint8], images: int) -> None:
    """Write what `numpy.savez` would, but not from memory."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (images, *patches.shape[1:])}
    with zipfile.ZipFile(path, "w") as archive, archive.open("images.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for first in range(0, images, PATCHES):
            file.write(patches[: images - first].tobytes())


ENDINGS = {
    "folder": "",
    "stored zip": ".stored.zip",
    "deflated zip": ".deflated.zip",
    "tar": ".tar",
    "parquet": ".parquet",
    "stored npz": ".npz",
}


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
        "epoch, µs",
        "images/s",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "container" else "right")
    for row in rows:
        times = [f"{statistics.median(values):,.0f}" for values in (row.in_order, row.at_random, row.pixels)]
        epoch = [f"{statistics.median(values):,.0f}" for values in (row.epoch, row.images_per_second)]
        table.add_row(row.kind, *times, f"{row.first:.2f}", f"{row.again:.2f}", f"{row.mebibytes:,.1f}", *epoch)
    return table


if __name__ == "__main__":
    main()
