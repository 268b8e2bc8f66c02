"""The metadata of a large store for real: one that is created, committed, resumed, published, opened and verified.

    python benchmarks/scale_simulation.py [--rows 10000000] [--out scale]

The store has as many rows as asked for and is made as `encode` does it, but with one latent an image, no pixels and no
model. Each step runs in a process of its own, so that its peak memory is its own. docs/scale.md tells what came out.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from results import print_table, write_markdown, write_results
from zarr.codecs import Crc32cCodec

from hvae_codec import open_store
from hvae_codec.store.arrays import row_group_digest, shard_key
from hvae_codec.store.columns import Columns, VariateColumns
from hvae_codec.store.folder_writer import FolderStoreWriter
from hvae_codec.store.metadata import ImageRecord, ModelRecord, SourceRecord
from hvae_codec.store.quantiser import IntCodec
from hvae_codec.store.spec import StoreSpec, spec_fingerprint
from hvae_codec.texts.classes import ClassTexts
from hvae_codec.texts.packed import PackedTexts
from hvae_codec.texts.sequence import BLOCK
from hvae_codec.verification.verify import verify

BILLION = 1_000_000_000


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="scale-", dir=options.out) as folder:
        simulate(Simulation(Path(folder), options.rows, options.commits), options)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--commits", type=int, default=400, help="row groups committed to measure a rate")
    parser.add_argument("--out", type=Path, help="folder for the results; the store is built in it, too")
    return parser.parse_args(arguments)


def unfinished(path: Path) -> Path:
    """Where the store of `path` is until it is published."""
    return path.with_name(f"{path.name}.partial")


@dataclass(frozen=True)
class Simulation:
    """A store that stands for a large one: `rows` images with one latent each."""

    folder: Path
    rows: int
    commits: int
    """Row groups to commit, one by one and with fsync, where a rate is measured."""

    @property
    def path(self) -> Path:
        """Where the store is published."""
        return self.folder / "large.zarr"

    def spec(self) -> StoreSpec:
        """What the store is made from, names and all."""
        return spec_of(self.rows, arrays=1)

    def writer(self) -> FolderStoreWriter:
        """Of the store as it stands, without a look at what is written."""
        return FolderStoreWriter(self.path, self.spec())

    def group(self) -> zarr.Group:
        """The unfinished store, for what the package has no function for."""
        return zarr.open_group(unfinished(self.path), mode="r+")


@dataclass
class Row:
    """One line of the table."""

    what: str
    seconds: float
    count: int = 0
    """How many of `unit` the seconds are for; 0 where that says nothing."""
    unit: str = ""
    mebibytes: float = 0.0
    """Peak resident memory of the process that did it."""
    note: str = ""
    processor: float = 0.0
    """Seconds of this process's threads on the processor, which other work on the machine does not add to."""

    @property
    def each(self) -> str:
        """Microseconds for one."""
        return f"{1e6 * self.seconds / self.count:,.1f} µs a {self.unit}" if self.count else ""


@dataclass
class Rows:
    """Rows of one process, in the order they were measured."""

    rows: list[Row] = field(default_factory=list)

    @contextmanager
    def measure(self, what: str, count: int = 0, unit: str = "", note: str = "") -> Iterator[None]:
        """Measure what is done within."""
        begun, used = time.perf_counter(), time.process_time()
        yield
        seconds, processor = time.perf_counter() - begun, time.process_time() - used
        self.rows.append(Row(what, seconds, count, unit, peak_mebibytes(), note, processor))


def peak_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)


def spec_of(rows: int, arrays: int) -> StoreSpec:
    """A store of `arrays` latent arrays of one channel, at resolutions 1, 2, 3 and so on."""
    columns = VariateColumns({r: np.array([[r - 1, 0]], np.int32) for r in range(1, arrays + 1)})
    return StoreSpec(
        names=PackedTexts.of_blocks(blocks_of_names(rows)),
        labels=ClassTexts.of(f"{k // 1000:06d}" for k in range(rows)),
        columns=columns,
        steps=unit_steps(columns),
        codec=IntCodec(),
        model=ModelRecord(hash="0" * 64),
        mask={},
        image=ImageRecord(size=256, channels=3, bits=8),
        source=SourceRecord(fingerprint="0" * 64, bytes=0),
    )


def unit_steps(columns: Columns) -> dict[int, np.ndarray]:
    return {r: np.ones(columns.count(r), np.float32) for r in columns.resolutions}


def name_of(image: int) -> str:
    return f"train/{image // 1000:06d}/{image:010d}.jpg"


def blocks_of_names(rows: int) -> Iterator[list[str]]:
    for first in range(0, rows, BLOCK):
        yield [name_of(k) for k in range(first, min(first + BLOCK, rows))]


def latents_of(writer: FolderStoreWriter, row_group: int) -> dict[int, np.ndarray]:
    rows = len(writer.rows(row_group))
    return {r: np.full((rows, *writer.spec.columns.item(r)), row_group % 100, "int16") for r in writer.spec.resolutions}


def in_own_process(step: Callable[[Simulation], list[Row]], simulation: Simulation) -> list[Row]:
    """What `step` measures in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(step, simulation).result()


def simulate(simulation: Simulation, options: argparse.Namespace) -> None:
    """Run all steps and print what they took; with `options.out`, write it there as well."""
    steps = (hold_names, create, commit, commit_wide, fill, resume, markers, publish, read, names, check, layouts)
    rows = [row for step in steps for row in in_own_process(step, simulation)]
    row_groups = -(-simulation.rows // StoreSpec.row_group_size)
    columns = ["", "seconds", "on the processor", "each", f"× {BILLION / simulation.rows:g}, hours", "peak MiB", "note"]
    table = [line_of(row, BILLION / simulation.rows) for row in rows]
    print_table(f"{simulation.rows:,} rows in {row_groups:,} row groups", columns, table)
    if options.out is not None:
        write_results(options.out, "scale", [asdict(row) for row in rows], vars(options))
        write_markdown(options.out / "scale.md", columns, table)


def line_of(row: Row, times: float) -> list[str]:
    hours = f"{row.seconds * times / 3600:,.2f}" if row.count and "rate" not in row.what else ""
    return [
        row.what,
        f"{row.seconds:,.3f}",
        f"{row.processor:,.3f}",
        row.each,
        hours,
        f"{row.mebibytes:,.0f}",
        row.note,
    ]


def size(count: float) -> str:
    """Bytes for people.

    >>> size(14_400_000_000_000)
    '14.4 TB'
    """
    power = min(5, int(math.log(max(count, 1), 1000)))
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB', 'PB')[power]}"


# --- the steps, in their order: each gives the rows it measured ------------------------------------------------------


def hold_names(simulation: Simulation) -> list[Row]:
    """What every encode has before it begins: the names and labels, in its memory."""
    found = Rows()
    with found.measure("imports alone"):
        pass
    with found.measure("names and labels, packed", simulation.rows, "row"):
        spec = simulation.spec()
    with found.measure("fingerprint of the specification", simulation.rows, "row"):
        spec_fingerprint(spec)
    return found.rows


def create(simulation: Simulation) -> list[Row]:
    found, spec = Rows(), simulation.spec()
    with found.measure("create the store", simulation.rows, "row"):
        FolderStoreWriter.create_or_resume(simulation.path, spec)
    for name in ("name", "label"):
        files = sorted((unfinished(simulation.path) / name / "c").iterdir())
        stored = sum(file.stat().st_size for file in files)
        note = f"{len(files)} chunks, {stored:,} bytes, {stored / simulation.rows:.2f} a row"
        found.rows.append(Row(f"  of this, `{name}`", 0.0, note=note))
    metadata = (unfinished(simulation.path) / "zarr.json").stat().st_size
    found.rows.append(Row("  of this, zarr.json", 0.0, note=f"{metadata:,} bytes"))
    return found.rows


def commit(simulation: Simulation) -> list[Row]:
    """The rate of commits with fsync: one after the other, then from eight threads, which wait for the disk at once."""
    found, writer = Rows(), simulation.writer()
    first = min(simulation.commits, writer.row_groups // 2)
    with found.measure("commit rate, 1 array, 1 writer", first, "row group"):
        for row_group in range(first):
            writer.write(row_group, latents_of(writer, row_group))
    rest = range(first, min(2 * first, writer.row_groups))
    with found.measure("commit rate, 1 array, 8 writers", len(rest), "row group"), ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda row_group: writer.write(row_group, latents_of(writer, row_group)), rest))
    return found.rows


def commit_wide(simulation: Simulation) -> list[Row]:
    found = Rows()
    spec = spec_of(simulation.commits * StoreSpec.row_group_size, arrays=8)
    writer = FolderStoreWriter.create_or_resume(simulation.folder / "wide.zarr", spec)
    with found.measure("commit rate, 8 arrays, 1 writer", writer.row_groups, "row group"):
        for row_group in range(writer.row_groups):
            writer.write(row_group, latents_of(writer, row_group))
    return found.rows


def fill(simulation: Simulation) -> list[Row]:
    """All other row groups but the last ten, in bulk and without fsync: only there for the steps to come."""
    writer, group = simulation.writer(), simulation.group()
    done = max(writer.row_groups - 10, 1)
    digests = np.array([digest_of(writer, r) for r in range(done)], np.uint32)
    latents = group["z1"].with_config({"write_empty_chunks": True})
    for first in range(0, done, 4096):
        last = min(first + 4096, done)
        stored = np.concatenate([latents_of(writer, r)[1] for r in range(first, last)])
        latents[first * StoreSpec.row_group_size : first * StoreSpec.row_group_size + len(stored)] = stored
    group["committed"][:done] = digests
    os.sync()
    return []


def digest_of(writer: FolderStoreWriter, row_group: int) -> int:
    return row_group_digest(list(latents_of(writer, row_group).values()))


def resume(simulation: Simulation) -> list[Row]:
    found, spec = Rows(), simulation.spec()
    row_groups = -(-simulation.rows // spec.row_group_size)
    with found.measure("resume: create_or_resume", row_groups, "row group"):
        writer = FolderStoreWriter.create_or_resume(simulation.path, spec)
    with found.measure("resume: pending()", row_groups, "row group", "again at the end, by publish"):
        pending = writer.pending()
    for row_group in pending:
        writer.write(row_group, latents_of(writer, row_group))
    return found.rows


def markers(simulation: Simulation) -> list[Row]:
    """The same digests read in other ways, and held in other chunks."""
    found, committed = Rows(), simulation.group()["committed"]
    count = committed.shape[0]
    folder = unfinished(simulation.path) / "committed" / "c"
    with found.measure("markers: list the folder", count, "row group"):
        names = [entry.name for entry in os.scandir(folder)]
    with found.measure("markers: one zarr read for all", count, "row group"):
        digests = committed[:]
    with found.measure("markers: read the files, no zarr", count, "row group"):
        raw = np.array([np.frombuffer((folder / name).read_bytes()[:4], "<u4")[0] for name in names])
    assert set(raw.tolist()) == set(digests.tolist())
    for chunk in (256, 65536):
        other = other_markers(simulation.folder / f"markers{chunk}", count, chunk)
        other[:] = digests
        with found.measure(f"markers: all, in chunks of {chunk:,}", count, "row group"):
            other[:]
        with found.measure(f"markers: replace one, in chunks of {chunk:,}", note="with fsync"):
            other[0] = digests[0]
            sync_branch(simulation.folder / f"markers{chunk}", "c/0")
    return found.rows


def other_markers(folder: Path, count: int, chunk: int) -> Any:
    return zarr.create_array(
        str(folder), shape=(count,), chunks=(chunk,), dtype="uint32", fill_value=0, compressors=[Crc32cCodec()]
    )


def sync_branch(root: Path, key: str) -> None:
    """Flush an object and the folders above it, up to `root`."""
    path = root / key
    while True:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        if path == root:
            return
        path = path.parent


def publish(simulation: Simulation) -> list[Row]:
    found, writer = Rows(), simulation.writer()
    with found.measure("publish", writer.row_groups, "row group"):
        writer.publish()
    return found.rows


def read(simulation: Simulation) -> list[Row]:
    """Opening and random images, of a store that is in the page cache."""
    found = Rows()
    with found.measure("open the store, first"):
        open_store(simulation.path)
    with found.measure("open the store, again"):
        store = open_store(simulation.path)
    chosen = np.random.default_rng(0).integers(0, len(store), 500)
    with found.measure("read rate, random images", len(chosen), "image"):
        for image in chosen:
            store.latents(int(image))
    return found.rows


def names(simulation: Simulation) -> list[Row]:
    found, store = Rows(), open_store(simulation.path)
    with found.measure("one name, by zarr"):
        store.group["name"][simulation.rows // 2]
    with found.measure("all names", simulation.rows, "row"):
        known = store.names
    with found.measure("find an image by its name", simulation.rows, "row", "from a list in memory"):
        known.index(known[-1])
    return found.rows


def check(simulation: Simulation) -> list[Row]:
    found = Rows()
    with found.measure("verify", -(-simulation.rows // StoreSpec.row_group_size), "row group"):
        report = verify(simulation.path)
    found.rows[-1].note = f"{report.files:,} files, {len(report.damages)} damages"
    return found.rows


def layouts(simulation: Simulation) -> list[Row]:
    """Files, folders and the disk they take; and shards whose key has no folders, c.0.0.0.0 in place of c/0/0/0/0."""
    found = Rows()
    with found.measure("walk over the finished store", simulation.rows, "row"):
        files, folders, stored, disk = footprint(simulation.path)
    note = f"{files:,} files, {folders:,} folders, {size(stored)}, {size(disk)} on the disk"
    found.rows[-1].note = note
    for separator, key in (("/", shard_key), (".", flat_key)):
        root = simulation.folder / f"keys{ord(separator)}"
        array = keyed_array(root, simulation.commits, separator)
        with found.measure(f"shard write rate, keys with {separator!r}", simulation.commits, "shard", "with fsync"):
            for number in range(simulation.commits):
                array[number * 256 : (number + 1) * 256] = 1
                sync_branch(root, key(number, (1, 1, 1)))
        files, folders, _, disk = footprint(root)
        found.rows[-1].note = f"with fsync; {files} files, {folders} folders, {size(disk)} on the disk"
    return found.rows


def flat_key(row_group: int, item: tuple[int, ...]) -> str:
    return shard_key(row_group, item).replace("/", ".")


def keyed_array(root: Path, shards: int, separator: str) -> Any:
    return zarr.create_array(
        str(root),
        shape=(shards * 256, 1, 1, 1),
        shards=(256, 1, 1, 1),
        chunks=(256, 1, 1, 1),
        dtype="int16",
        chunk_key_encoding={"name": "default", "separator": separator},
    )


def footprint(root: Path) -> tuple[int, int, int, int]:
    """Files, folders, bytes in files, bytes on the disk (folders included)."""
    files = folders = stored = disk = 0
    for folder, _, here in os.walk(root):
        folders += 1
        disk += 512 * os.stat(folder).st_blocks
        for name in here:
            about = os.stat(os.path.join(folder, name))
            files, stored, disk = files + 1, stored + about.st_size, disk + 512 * about.st_blocks
    return files, folders, stored, disk


if __name__ == "__main__":
    main()
