"""What workers and the driver hold in memory, by the number of images: row groups as they are sent to a worker.

    python benchmarks/worker_memory.py --images 1000 1000000

A tar of PNG files with names of 40 characters, of 8 × 8 pixels. The driver opens it, makes a store, and sends a few row
groups to a worker: a process of its own, which encodes and commits them. Peaks of both by the kernel. The model is of
random weights. The same row groups are sent for each number of images.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import json
import os
import pickle
import re
import resource
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
from conditions import conditions
from PIL import Image
from rich.console import Console
from rich.table import Table

STAGE = {"width": 16, "variates": 4, "bottleneck": 0.5}
CONFIG = {
    "stages": [STAGE | {"resolution": 8, "linked_blocks": 2}, STAGE | {"resolution": 1}],
    "model": {"resolution": 8, "mixtures": 2, "middle_layers": 1},
}
ROW_GROUP = 100  # 1,000 images have ten of them, all full


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 1_000_000])
    parser.add_argument("--row-groups", type=int, default=10, help="that are sent")
    parser.add_argument("--folder", type=Path, help="where the tars are made, or are if they were")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measured(options.measure, options.row_groups)))
        return
    print(f"{conditions()}\npython benchmarks/worker_memory.py --images {' '.join(map(str, options.images))}")
    with tempfile.TemporaryDirectory(prefix="worker_memory-") as scratch:
        folder = options.folder or Path(scratch)
        os.environ["XDG_CACHE_HOME"] = f"{scratch}/cache"  # also of the processes that are started
        save_run(folder / "run")
        rows = {count: measure(write(folder, count), options.row_groups) for count in options.images}
    Console(width=140).print(as_table(rows))


def save_run(path: Path) -> None:
    from hvae_codec.config import config_from_dict
    from hvae_codec.model.checkpoint import save_model
    from hvae_codec.model.hvae import HVAE

    torch.manual_seed(0)
    config = config_from_dict(CONFIG)
    save_model(path, config, HVAE(config.model).state_dict())


def write(folder: Path, images: int) -> Path:
    """Make a tar of so many images in `folder`, if it is not there yet: a thousand patches, again and again."""
    path = folder / f"images-{images}.tar"
    if path.exists():
        return path
    patches = list(encoded_patches(1000))
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(images):
            member, content = tarfile.TarInfo(name_of(number)), patches[number % 1000]
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
            tar.members.clear()
    return path


def name_of(number: int) -> str:
    """A name of 40 characters that says nothing; ascending in folders, so that equal row groups are sent."""
    return f"{number // 1000:05d}/{hashlib.md5(str(number).encode()).hexdigest()[:30]}.png"


def encoded_patches(count: int) -> Iterator[bytes]:
    photo = skimage.data.astronaut()
    for y, x in np.random.default_rng(0).integers(0, 504, (count, 2)):
        file = io.BytesIO()
        Image.fromarray(photo[y : y + 8, x : x + 8]).save(file, "PNG")
        yield file.getvalue()


def measure(path: Path, row_groups: int) -> dict[str, float]:
    """Measure in a process that has nothing else in memory, the second time, as the first one lists the tar."""
    imported = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import worker_memory"
    # As a module, not a script, so that the worker can import the task.
    command = [sys.executable, "-c", f"{imported}; worker_memory.main()", "--measure", str(path)]
    command += ["--row-groups", str(row_groups)]
    _, second = (json.loads(subprocess.check_output(command, text=True)) for _ in range(2))
    return second


def measured(path: Path, row_groups: int) -> dict[str, float]:
    """Begin a store as `encode` does, and have some of its row groups written by a worker."""
    from hvae_codec import LatentMask, load_model, open_images
    from hvae_codec.encode.driver import job_of
    from hvae_codec.encode.job import RowGroupImages
    from hvae_codec.encode.missing import MissingRowGroups
    from hvae_codec.encode.pipeline import EncodeOptions, plan_store
    from hvae_codec.model.reference import ModelReference
    from hvae_codec.prune.kl_stats import kl_stats
    from hvae_codec.storage.location import location_of
    from hvae_codec.store.open_writer import create_or_resume
    from hvae_codec.store.workers import Worker

    torch.set_num_threads(1)
    model = load_model(path.parent / "run")
    imported = peak_mebibytes()
    source = open_images(path, size=8, channels=3)
    stats = kl_stats(model, source.subset(np.arange(100)))
    how: Any = {"mask": LatentMask.from_keep(stats, 0.5), "stats": stats, "codec": None}
    encoder, spec = plan_store(model, source, options=EncodeOptions(row_group_size=ROW_GROUP, batch_size=50), **how)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        writer, _ = create_or_resume(location_of(Path(folder) / "out.zarr"), spec, False, Worker())
        missing = MissingRowGroups(writer, encoder)
        job = job_of(missing, ModelReference.of(model), "cpu")
        items = [RowGroupImages(r, source.portion(np.array(missing.images(r)))) for r in range(row_groups)]
        worker = worker_peaks(job.encoder, items)
    sizes = {"job": len(pickle.dumps(job)), "row group": max(len(pickle.dumps(item)) for item in items)}
    return sizes | worker | {"driver": peak_mebibytes(), "driver, before it opens images": imported}


def worker_peaks(encoder: Any, items: Sequence[Any]) -> dict[str, float]:
    """Send all to one new worker process; its peak after the first row group, and after the last."""
    from hvae_codec.engine.local_processes import local_engine, shared_cores

    with local_engine(shared_cores(1), None) as engine:
        peaks = list(engine.map(Traced(encoder), items))
    return {"worker, 1 row group": peaks[0], f"worker, {len(items)} row groups": peaks[-1]}


@dataclasses.dataclass(frozen=True)
class Traced:
    """A task that says how much memory its process has had at most."""

    encoder: Any

    def __call__(self, images: Any) -> float:
        """Encode a row group; the peak of this process in MiB."""
        from hvae_codec.encode.job import encode_row_group

        encode_row_group(self.encoder, images)
        return peak_mebibytes()


def peak_mebibytes() -> float:
    """Return the most that this process has had in memory.

    Linux's `ru_maxrss` is never below what the parent had when it started the process, so its own figure is taken.
    """
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)


def as_table(rows: dict[int, dict[str, float]]) -> Table:
    table = Table(caption="job and row group: bytes, pickled; others: MiB at the peak")
    table.add_column("images", justify="right")
    for heading in next(iter(rows.values())):
        table.add_column(heading, justify="right")
    for images, row in rows.items():
        cells = [f"{value:,.0f}" if isinstance(value, int) else f"{value:,.1f}" for value in row.values()]
        table.add_row(f"{images:,}", *cells)
    return table


if __name__ == "__main__":
    main()
