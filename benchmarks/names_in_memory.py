"""What the names and labels of a data set take, in memory and time, from opening it to the tables of a store.

    python benchmarks/names_in_memory.py --images 1000000

Empty files with names of 40 characters in 1,000 folders, in a folder and in a tar; and an array, whose names are
numbers. Nothing is decoded. Each is opened once, so that the tar is listed, and then measured in a process of its own:
seconds of the processor, and bytes per image above the imports, of which some 50 are not names but positions, sizes and
what is counted of each image.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from conditions import conditions
from rich.console import Console
from rich.table import Table

STEPS = ("open", "split", "fingerprint", "specification", "its fingerprint", "tables")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--kinds", nargs="+", default=["folder", "tar", "array"], choices=["folder", "tar", "array"])
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="where the files are made, or are if they were")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measured(arguments.measure)))
        return
    print(f"{conditions()}\npython benchmarks/names_in_memory.py --images {arguments.images}")
    with tempfile.TemporaryDirectory(prefix="names-") as scratch:
        folder = arguments.folder or Path(scratch)
        os.environ["XDG_CACHE_HOME"] = f"{scratch}/cache"  # also of the processes that are started
        rows = {kind: measure(write(kind, folder, arguments.images)) for kind in arguments.kinds}
    Console(width=150).print(as_table(rows, arguments.images))


def write(kind: str, folder: Path, images: int) -> Path:
    """Make a container of so many images in `folder`, if it is not there yet."""
    path = folder / {"folder": "files", "tar": "files.tar", "array": "array.npy"}[kind]
    if not path.exists():
        {"folder": write_folder, "tar": write_tar, "array": write_array}[kind](path, images)
    return path


def write_folder(path: Path, images: int) -> None:
    for i in range(1000):
        (path / f"{i:04d}").mkdir(parents=True)
    for name in names(images):
        (path / name).touch()


def write_tar(path: Path, images: int) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name in names(images):
            tar.addfile(tarfile.TarInfo(name))
            tar.members.clear()


def write_array(path: Path, images: int) -> None:
    np.lib.format.open_memmap(path, "w+", np.uint8, (images, 8, 8))  # zeros, which take no disk


def names(images: int) -> Iterator[str]:
    for i in range(images):
        yield f"{i % 1000:04d}/{hashlib.md5(str(i).encode()).hexdigest()[:31]}.png"


def measure(path: Path) -> dict[str, float]:
    """Measure in a process that has nothing else in memory, the second time, as the first one lists archives."""
    command = [sys.executable, __file__, "--measure", str(path)]
    # ru_maxrss of a process is never below that of its parent, so a child starts another one that imports little.
    shell = [sys.executable, "-c", "import subprocess, sys; print(subprocess.check_output(sys.argv[1:], text=True))"]
    first, second = (json.loads(subprocess.check_output([*shell, *command], text=True)) for _ in range(2))
    return {"first": first["open"], **second}


def measured(path: Path) -> dict[str, float]:
    """Do what an encode does before its first image; seconds of each step, and bytes in memory above the imports."""
    import zarr

    from hvae_codec.data.sources import open_images
    from hvae_codec.store.create import create_arrays
    from hvae_codec.store.spec import spec_fingerprint

    seconds: dict[str, float] = {}
    peak, held = peak_bytes(), held_bytes()
    with timed(seconds, "open"):
        source = open_images(path, size=8, channels=1)
    with timed(seconds, "split"):
        train = source.split("train")
    with timed(seconds, "fingerprint"):
        _ = train.fingerprint
    with timed(seconds, "specification"):
        spec = spec_of(train)
    seconds["held"] = held_bytes() - held
    with timed(seconds, "its fingerprint"):
        spec_fingerprint(spec)
    with timed(seconds, "tables"), tempfile.TemporaryDirectory() as folder:
        create_arrays(zarr.open_group(folder, mode="w", zarr_format=3), spec)
    return seconds | {"peak": peak_bytes() - peak}


def spec_of(source):
    """The specification of a store that keeps one latent per image."""
    from hvae_codec.store.columns import VariateColumns
    from hvae_codec.store.metadata import ImageRecord, ModelRecord, SourceRecord
    from hvae_codec.store.quantiser import IntCodec
    from hvae_codec.store.spec import StoreSpec

    return StoreSpec(
        names=source.names,
        labels=source.labels,
        columns=VariateColumns({1: np.array([[0, 0]], np.int32)}),
        steps={1: np.ones(1, np.float32)},
        codec=IntCodec(),
        model=ModelRecord(hash="0" * 64),
        mask={},
        image=ImageRecord(size=8, channels=1, bits=8),
        source=SourceRecord(fingerprint="0" * 64, bytes=0),
    )


@contextmanager
def timed(seconds: dict[str, float], what: str) -> Iterator[None]:
    begun = time.process_time()
    yield
    seconds[what] = time.process_time() - begun


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def held_bytes() -> int:
    """Resident bytes now, 0 if the system does not say."""
    statistics = Path("/proc/self/statm")
    return int(statistics.read_text().split()[1]) * resource.getpagesize() if statistics.exists() else 0


def as_table(rows: dict[str, dict[str, float]], images: int) -> Table:
    table = Table(caption="seconds; bytes per image above the imports")
    headings = ("", "opened first", *STEPS, "bytes held", "bytes at the peak")
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    for kind, row in rows.items():
        seconds = [f"{row[step]:.2f}" for step in ("first", *STEPS)]
        table.add_row(kind, *seconds, *(f"{row[what] / images:,.0f}" for what in ("held", "peak")))
    return table


if __name__ == "__main__":
    main()
