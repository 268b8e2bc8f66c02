"""`verify` in one process and in workers: seconds, and the peak memory of a worker, for stores of several sizes.

    python benchmarks/verify_workers.py --images 1000 1000000 --channels 0
    python benchmarks/verify_workers.py --images 20000 --channels 9

A store has names of 40 characters and, per image, one latent or `channels` channels of 16 × 16 random ones.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from results import print_table

from hvae_codec.engine.engine import Engine
from hvae_codec.engine.where import engine_on
from hvae_codec.store.columns import VariateColumns
from hvae_codec.store.folder_writer import FolderStoreWriter
from hvae_codec.store.metadata import ImageRecord, ModelRecord, SourceRecord
from hvae_codec.store.quantiser import IntCodec
from hvae_codec.store.spec import StoreSpec
from hvae_codec.texts.classes import ClassTexts
from hvae_codec.texts.packed import PackedTexts
from hvae_codec.texts.sequence import BLOCK
from hvae_codec.verification.verify import verify


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 1_000_000])
    parser.add_argument("--channels", type=int, default=0, help="of 16 × 16 latents; 0: one latent per image")
    parser.add_argument("--on", default="local:2")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        rows = [measure(write_store(Path(folder), images, options.channels), options) for images in options.images]
    columns = ["images", "one process", options.on, "ratio", "MiB of a worker"]
    print_table("verify", columns, rows, "seconds: the shortest of each; one after the other in turn")


def measure(path: Path, options: argparse.Namespace) -> list[str]:
    here, there = [], []
    with engine_on(options.on) as engine:
        peaks_of(engine)  # processes start
        for _ in range(options.repeats):
            here.append(seconds(partial(verify, path)))
            there.append(seconds(partial(verify, path, engine=engine)))
        peaks = peaks_of(engine)
    return [
        f"{int(path.stem):,}",
        f"{min(here):.2f}",
        f"{min(there):.2f}",
        f"{min(here) / min(there):.2f}",
        f"{max(peaks):.1f}",
    ]


def seconds(work: partial) -> float:
    begun = time.perf_counter()
    assert work().ok
    return time.perf_counter() - begun


def peaks_of(engine: Engine) -> list[float]:
    """Ask more often than there are processes, so that each answers: MiB.

    Not by `getrusage`, which gives a process the peak of the one that started it.
    """
    statuses = engine.map(Path.read_text, [Path("/proc/self/status")] * 20 * engine.window)
    return [int(status.split("VmHWM:")[1].split()[0]) / 1024 for status in statuses]


def write_store(folder: Path, images: int, channels: int) -> Path:
    path, rng = folder / f"{images}.zarr", np.random.default_rng(0)
    writer = FolderStoreWriter.create_or_resume(path, make_spec(images, channels))
    for row_group in writer.pending():
        shapes = {r: (len(writer.rows(row_group)), *writer.spec.columns.item(r)) for r in writer.spec.resolutions}
        writer.write(row_group, {r: rng.integers(-3, 4, shape).astype(np.int16) for r, shape in shapes.items()})
    writer.publish()
    return path


def make_spec(images: int, channels: int) -> StoreSpec:
    resolution = 16 if channels else 1
    columns = VariateColumns({resolution: np.array([[0, c] for c in range(max(channels, 1))], np.int32)})
    return StoreSpec(
        names=PackedTexts.of_blocks(blocks_of_names(images)),
        labels=ClassTexts.same("", images),
        columns=columns,
        steps={resolution: np.ones(max(channels, 1), np.float32)},
        codec=IntCodec(),
        model=ModelRecord(hash="0" * 64),
        mask={},
        image=ImageRecord(size=32, channels=3, bits=8),
        source=SourceRecord(fingerprint="0" * 64, bytes=0),
    )


def blocks_of_names(images: int) -> Iterator[list[str]]:
    for first in range(0, images, BLOCK):
        yield [f"train/class-{k % 1000:04d}/image-{k:013d}.png" for k in range(first, min(first + BLOCK, images))]


if __name__ == "__main__":
    main()
