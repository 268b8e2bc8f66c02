"""The store at scale: what a plan of many images comes to on paper, and the metadata of a large store for real.

    python benchmarks/scale.py paper [--images 1000000000] [--workers 1000]
    python benchmarks/scale.py metadata [--preset ffhq256_8bits_baseline]
    python benchmarks/scale.py simulate [--rows 10000000] [--out scale]

`paper` counts row groups, objects and bytes of stores of several presets. `metadata` measures zarr.json, and opening,
of masks that take little and much to say. `simulate` creates, commits, resumes, publishes and opens a store of that
many rows as `encode` does, but with one latent an image, no pixels and no model. Each step runs in a process of its
own, so that its peak memory is its own. docs/scale.md tells what came out.
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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from results import print_table, write_markdown, write_results
from zarr.codecs import Crc32cCodec

from hvae_codec.config import GroupShape, ModelConfig
from hvae_codec.encode.columns import Columns, VariateColumns, stored_columns
from hvae_codec.encode.latents import IntCodec
from hvae_codec.encode.layout import StoreSpec, row_group_digest, shard_key, spec_fingerprint
from hvae_codec.encode.store import open_store
from hvae_codec.encode.writer import StoreWriter, partial_path
from hvae_codec.presets import load_preset

if TYPE_CHECKING:
    from hvae_codec.prune.mask import LatentMask

# The quickstart's store, docs/guide.md: bytes, latents and colour values of an image. What a trained model of 256 x 256
# pixels would give is not known here, so its bytes are counted both ways, by colour value and by latent.
QUICKSTART_BYTES, QUICKSTART_LATENTS, QUICKSTART_PIXELS = 225.3, 1968, 3072
BILLION = 1_000_000_000


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.what == "paper":
        print_paper(options)
    elif options.what == "metadata":
        print_metadata(options)
    elif options.out is None:
        with tempfile.TemporaryDirectory(prefix="scale-") as folder:
            simulate(Simulation(Path(folder), options.rows, options.commits), None)
    else:
        options.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="scale-", dir=options.out) as folder:
            simulate(Simulation(Path(folder), options.rows, options.commits), options)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    paper = commands.add_parser("paper")
    paper.add_argument("--images", type=int, default=BILLION)
    paper.add_argument("--workers", type=int, default=1000)
    paper.add_argument("--keep", type=float, default=0.03, help="share of the latent dimensions")
    paper.add_argument("--shard", type=int, default=256, help="images in a row group")
    metadata = commands.add_parser("metadata")
    metadata.add_argument("--preset", default="ffhq256_8bits_baseline")
    metadata.add_argument("--keep", type=float, default=0.03, help="share of the latent dimensions")
    simulation = commands.add_parser("simulate")
    simulation.add_argument("--rows", type=int, default=10_000_000)
    simulation.add_argument("--commits", type=int, default=400, help="row groups committed to measure a rate")
    simulation.add_argument("--out", type=Path, help="folder for the results; the store is built in it, too")
    return parser.parse_args(arguments)


# --- on paper --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What a store of a preset's latents comes to."""

    name: str
    images: int
    shard: int
    pixels: int
    """Colour values of an image."""
    kept: dict[int, int]
    """Latent resolution to kept variates, where there are any."""

    @property
    def latents(self) -> int:
        """Kept latent dimensions of an image."""
        return sum(count * resolution**2 for resolution, count in self.kept.items())

    @property
    def row_groups(self) -> int:
        """Row groups of the store."""
        return -(-self.images // self.shard)

    @property
    def shards(self) -> int:
        """One an array and row group."""
        return len(self.kept) * self.row_groups

    @property
    def bytes_per_image(self) -> tuple[float, float]:
        """As in the quickstart, by pixel and by latent, the lower one first."""
        by_pixel = QUICKSTART_BYTES * self.pixels / QUICKSTART_PIXELS
        by_latent = QUICKSTART_BYTES * self.latents / QUICKSTART_LATENTS
        return min(by_pixel, by_latent), max(by_pixel, by_latent)


def kept_everywhere(preset: str, keep: float) -> dict[int, int]:
    """The same share of every resolution's variates: as many arrays as there can be."""
    return {r: max(1, round(keep * count)) for r, count in variates(preset).items()}


def kept_lowest(preset: str, keep: float) -> dict[int, int]:
    """All variates of the lowest resolutions, as far as the share goes: fewer arrays for as many latents."""
    found, kept = variates(preset), {}
    left = keep * sum(count * r**2 for r, count in found.items())
    for resolution in sorted(found):
        kept[resolution] = min(found[resolution], int(left // resolution**2))
        left -= kept[resolution] * resolution**2
    return {resolution: count for resolution, count in kept.items() if count}


def variates(preset: str) -> dict[int, int]:
    """Variates of each latent resolution."""
    found: dict[int, int] = {}
    for group in load_preset(preset).model.groups:
        found[group.resolution] = found.get(group.resolution, 0) + group.variates
    return found


def plans(images: int, keep: float, shard: int) -> Iterator[Plan]:
    for preset, which, choose in (
        ("tiny32", "every resolution", kept_everywhere),
        ("ffhq256_8bits_baseline", "lowest first", kept_lowest),
        ("ffhq256_8bits_baseline", "every resolution", kept_everywhere),
    ):
        yield Plan(f"{preset}, {which}", images, shard, load_preset(preset).model.image_dims, choose(preset, keep))


def print_paper(options: argparse.Namespace) -> None:
    found = list(plans(options.images, options.keep, options.shard))
    facts: dict[str, Callable[[Plan], str]] = {
        "latent arrays": lambda plan: f"{len(plan.kept)}",
        "latents an image": lambda plan: f"{plan.latents:,}",
        "a row group in memory, int16": lambda plan: size(2 * plan.latents * plan.shard),
        "row groups": lambda plan: f"{plan.row_groups:,}",
        "shards": lambda plan: f"{plan.shards:,}",
        "files and folders of shards, on a disk": lambda plan: f"{4 * plan.shards:,}",
        "objects in `committed`": lambda plan: f"{plan.row_groups:,}",
        "pages of 1,000 keys to list all": lambda plan: f"{math.ceil((plan.shards + plan.row_groups) / 1000):,}",
        "stored bytes an image": lambda plan: " to ".join(size(b) for b in plan.bytes_per_image),
        "stored bytes": lambda plan: " to ".join(size(b * plan.images) for b in plan.bytes_per_image),
        "average shard": lambda plan: " to ".join(size(b * plan.images / plan.shards) for b in plan.bytes_per_image),
    }
    table = [[what, *(fact(plan) for plan in found)] for what, fact in facts.items()]
    title = f"{options.images:,} images, keep {options.keep:.0%}, {options.shard} images a row group"
    print_table(title, ["", *(plan.name for plan in found)], table)
    rates = [rate_row(speed, options.workers, found[-1]) for speed in (1, 10, 100, 1000)]
    print_table(f"{options.workers:,} workers", list(rates[0]), [list(row.values()) for row in rates])


def rate_row(speed: float, workers: int, plan: Plan) -> dict[str, str]:
    """What a speed of the workers, in images/s each, asks of the storage."""
    row_groups = speed * workers / plan.shard
    objects = row_groups * (len(plan.kept) + 1)
    low, high = (speed * workers * b for b in plan.bytes_per_image)
    return {
        "images/s a worker": f"{speed:g}",
        "days": f"{plan.images / speed / workers / 86400:,.1f}",
        "row groups/s": f"{row_groups:,.1f}",
        "objects/s": f"{objects:,.0f}",
        "bytes/s": f"{size(low)} to {size(high)}",
        "seconds between a worker's commits": f"{plan.shard / speed:g}",
    }


def size(count: float) -> str:
    """Bytes for people.

    >>> size(14_400_000_000_000)
    '14.4 TB'
    """
    power = min(5, int(math.log(max(count, 1), 1000)))
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB', 'PB')[power]}"


# --- the size of what a mask says ------------------------------------------------------------------------------------


def print_metadata(options: argparse.Namespace) -> None:
    rows = [metadata_row(name, mask) for name, mask in masks(load_preset(options.preset).model, options.keep)]
    print_table(f"Metadata, {options.preset}, keep {options.keep:.0%}", list(rows[0]), [[*r.values()] for r in rows])


def masks(model: ModelConfig, keep: float) -> Iterator[tuple[str, LatentMask]]:
    """Variates at random; a square of positions in each variate; single positions at random, the longest to say."""
    from hvae_codec.prune.mask import LatentMask  # here: it imports torch, which the simulation does without

    random = np.random.default_rng(0)
    groups, resolutions = model.groups, tuple(group.resolution for group in model.groups)
    yield "variates", LatentMask(tuple(random.random(g.variates) < keep for g in groups), resolutions)
    yield "positions, one square a variate", LatentMask(tuple(squares(g, keep) for g in groups), resolutions)
    scattered = (random.random((g.variates, g.resolution, g.resolution)) < keep for g in groups)
    yield "positions, scattered", LatentMask(tuple(scattered), resolutions)


def squares(group: GroupShape, keep: float) -> np.ndarray:
    flags = np.zeros((group.variates, group.resolution, group.resolution), bool)
    side = max(1, round(group.resolution * math.sqrt(keep)))
    flags[:, :side, :side] = True
    return flags


def metadata_row(name: str, mask: LatentMask) -> dict[str, str]:
    """A store of one image that keeps what `mask` does: bytes of its metadata, and the time to open it."""
    columns = stored_columns(mask)
    spec = replace(spec_of(1, arrays=1), columns=columns, mask=mask.to_dict(), steps=unit_steps(columns))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.zarr"
        writer = StoreWriter.create_or_resume(path, spec)
        writer.write(0, latents_of(writer, 0))
        writer.publish()
        seconds = min(timed(lambda: open_store(path)) for _ in range(5))
        tables = sum(file.stat().st_size for file in path.glob("dimension*/c/**/*") if file.is_file())
        return {
            "kept": name,
            "latents": f"{mask.kept_dims:,}",
            "zarr.json": size((path / "zarr.json").stat().st_size),
            "tables of places": size(tables),
            "opening, ms": f"{1000 * seconds:.1f}",
        }


def timed(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def unit_steps(columns: Columns) -> dict[int, np.ndarray]:
    return {r: np.ones(columns.count(r), np.float32) for r in columns.resolutions}


# --- simulated -------------------------------------------------------------------------------------------------------


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

    def writer(self) -> StoreWriter:
        """Of the store as it stands, without a look at what is written."""
        return StoreWriter(self.path, self.spec())

    def group(self) -> zarr.Group:
        """The unfinished store, for what the package has no function for."""
        return zarr.open_group(partial_path(self.path), mode="r+")


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
        begun = time.perf_counter()
        yield
        self.rows.append(Row(what, time.perf_counter() - begun, count, unit, peak_mebibytes(), note))


def peak_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)


def spec_of(rows: int, arrays: int) -> StoreSpec:
    """A store of `arrays` latent arrays of one channel, at resolutions 1, 2, 3 and so on."""
    columns = VariateColumns({r: np.array([[r - 1, 0]], np.int32) for r in range(1, arrays + 1)})
    labels = [f"{k // 1000:06d}" for k in range(rows)]
    return StoreSpec(
        names=[f"train/{label}/{k:010d}.jpg" for k, label in enumerate(labels)],
        labels=labels,
        columns=columns,
        steps=unit_steps(columns),
        codec=IntCodec(),
        model={"hash": "0" * 64, "config": {}, "run": ""},
        mask={},
        image={"size": 256, "channels": 3, "bits": 8},
        source={"fingerprint": "0" * 64, "bytes": 0},
    )


def latents_of(writer: StoreWriter, row_group: int) -> dict[int, np.ndarray]:
    rows = len(writer.rows(row_group))
    return {r: np.full((rows, *writer.spec.columns.item(r)), row_group % 100, "int16") for r in writer.spec.resolutions}


def in_own_process(step: Callable[[Simulation], list[Row]], simulation: Simulation) -> list[Row]:
    """What `step` measures in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(step, simulation).result()


def simulate(simulation: Simulation, options: argparse.Namespace | None) -> None:
    """Run all steps and print what they took; with `options`, write it below `options.out` as well."""
    steps = (hold_names, create, commit, commit_wide, fill, resume, markers, publish, read, names, layouts)
    rows = [row for step in steps for row in in_own_process(step, simulation)]
    row_groups = -(-simulation.rows // StoreSpec.shard)
    columns = ["", "seconds", "each", f"× {BILLION / simulation.rows:g}, hours", "peak MiB", "note"]
    table = [line_of(row, BILLION / simulation.rows) for row in rows]
    print_table(f"{simulation.rows:,} rows in {row_groups:,} row groups", columns, table)
    if options is not None:
        write_results(options.out, "scale", [asdict(row) for row in rows], vars(options))
        write_markdown(options.out / "scale.md", columns, table)


def line_of(row: Row, times: float) -> list[str]:
    hours = f"{row.seconds * times / 3600:,.2f}" if row.count and "rate" not in row.what else ""
    return [row.what, f"{row.seconds:,.3f}", row.each, hours, f"{row.mebibytes:,.0f}", row.note]


# --- the steps, in their order: each gives the rows it measured ------------------------------------------------------


def hold_names(simulation: Simulation) -> list[Row]:
    """What every encode has before it begins: the names and labels, in its memory."""
    found = Rows()
    with found.measure("imports alone"):
        pass
    with found.measure("list of names and labels", simulation.rows, "row"):
        spec = simulation.spec()
    with found.measure("fingerprint of the specification", simulation.rows, "row"):
        spec_fingerprint(spec)
    return found.rows


def create(simulation: Simulation) -> list[Row]:
    found, spec = Rows(), simulation.spec()
    with found.measure("create the store", simulation.rows, "row"):
        StoreWriter.create_or_resume(simulation.path, spec)
    for name in ("name", "label"):
        files = sorted((partial_path(simulation.path) / name / "c").iterdir())
        stored = sum(file.stat().st_size for file in files)
        note = f"{len(files)} chunks, {stored:,} bytes, {stored / simulation.rows:.2f} a row"
        found.rows.append(Row(f"  of this, `{name}`", 0.0, note=note))
    metadata = (partial_path(simulation.path) / "zarr.json").stat().st_size
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
    spec = spec_of(simulation.commits * StoreSpec.shard, arrays=8)
    writer = StoreWriter.create_or_resume(simulation.folder / "wide.zarr", spec)
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
        latents[first * StoreSpec.shard : first * StoreSpec.shard + len(stored)] = stored
    group["committed"][:done] = digests
    os.sync()
    return []


def digest_of(writer: StoreWriter, row_group: int) -> int:
    return row_group_digest(list(latents_of(writer, row_group).values()))


def resume(simulation: Simulation) -> list[Row]:
    found, spec = Rows(), simulation.spec()
    row_groups = -(-simulation.rows // spec.shard)
    with found.measure("resume: create_or_resume", row_groups, "row group"):
        writer = StoreWriter.create_or_resume(simulation.path, spec)
    with found.measure("resume: pending()", row_groups, "row group", "again at the end, by publish"):
        pending = writer.pending()
    for row_group in pending:
        writer.write(row_group, latents_of(writer, row_group))
    return found.rows


def markers(simulation: Simulation) -> list[Row]:
    """The same digests read in other ways, and held in other chunks."""
    found, committed = Rows(), simulation.group()["committed"]
    count = committed.shape[0]
    folder = partial_path(simulation.path) / "committed" / "c"
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
