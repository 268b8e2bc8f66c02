"""A plan of many images on paper: row groups, objects, bytes and rates of stores of several presets.

    python benchmarks/scale.py [--images 1000000000] [--workers 1000] [--keep 0.03] [--shard 256]

Then, measured: zarr.json, and opening, of masks that take little and much to say, and what names take.
scale_simulation.py measures the metadata of a large store. docs/scale.md tells what came out of both.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import zarr
from results import print_table
from scale_simulation import BILLION, latents_of, name_of, size, spec_of, unit_steps

from hvae_codec import open_store
from hvae_codec.config import GroupShape, ModelConfig
from hvae_codec.encode.coder import stored_columns
from hvae_codec.presets import load_preset
from hvae_codec.store.folder_writer import FolderStoreWriter
from hvae_codec.store.schema import table_schema

if TYPE_CHECKING:
    from hvae_codec.prune.mask import LatentMask

LARGE = "ffhq256_8bits_baseline"

# The quickstart's store, docs/guide.md: bytes, latents and colour values of an image. What a trained model of 256 x 256
# pixels would give is not known here, so its bytes are counted both ways, by colour value and by latent.
QUICKSTART_BYTES, QUICKSTART_LATENTS, QUICKSTART_PIXELS = 225.3, 1968, 3072


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    print_plans(options)
    print_metadata(options)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=BILLION)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--keep", type=float, default=0.03, help="share of the latent dimensions")
    parser.add_argument("--shard", type=int, default=256, help="images in a row group")
    parser.add_argument("--preset", default=LARGE, help="whose masks are measured")
    return parser.parse_args(arguments)


@dataclass(frozen=True)
class Plan:
    """What a store of a preset's latents comes to."""

    name: str
    images: int
    row_group_size: int
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
        return -(-self.images // self.row_group_size)

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


def plans(images: int, keep: float, row_group_size: int) -> Iterator[Plan]:
    for preset, which, choose in (
        ("tiny32", "every resolution", kept_everywhere),
        (LARGE, "lowest first", kept_lowest),
        (LARGE, "every resolution", kept_everywhere),
    ):
        yield Plan(
            f"{preset}, {which}", images, row_group_size, load_preset(preset).model.image_dims, choose(preset, keep)
        )


def print_plans(options: argparse.Namespace) -> None:
    found = list(plans(options.images, options.keep, options.shard))
    facts: dict[str, Callable[[Plan], str]] = {
        "latent arrays": lambda plan: f"{len(plan.kept)}",
        "latents an image": lambda plan: f"{plan.latents:,}",
        "a row group in memory, int16": lambda plan: size(2 * plan.latents * plan.row_group_size),
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
    row_groups = speed * workers / plan.row_group_size
    objects = row_groups * (len(plan.kept) + 1)
    low, high = (speed * workers * b for b in plan.bytes_per_image)
    return {
        "images/s a worker": f"{speed:g}",
        "days": f"{plan.images / speed / workers / 86400:,.1f}",
        "row groups/s": f"{row_groups:,.1f}",
        "objects/s": f"{objects:,.0f}",
        "bytes/s": f"{size(low)} to {size(high)}",
        "seconds between a worker's commits": f"{plan.row_group_size / speed:g}",
    }


# --- the size of what a mask says ------------------------------------------------------------------------------------


def print_metadata(options: argparse.Namespace) -> None:
    rows = [metadata_row(name, mask) for name, mask in masks(load_preset(options.preset).model, options.keep)]
    print_table(f"Metadata, {options.preset}, keep {options.keep:.0%}", list(rows[0]), [[*r.values()] for r in rows])
    named = [[kind, names[-1], f"{stored_name_bytes(names):.2f}"] for kind, names in kinds_of_names().items()]
    print_table("Names, a chunk of 65,536", ["kind", "such as", "stored bytes a name"], named)


def kinds_of_names() -> dict[str, list[str]]:
    """A chunk of names each: what they take in a store depends on how alike they are."""
    numbers = range(10**8, 10**8 + 65536)
    return {
        "numbered": [name_of(k) for k in numbers],
        "hexadecimal": [f"{hashlib.md5(str(k).encode()).hexdigest()}.jpg" for k in numbers],
    }


def stored_name_bytes(names: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        group = zarr.open_group(folder, mode="w")
        texts = np.array(names, dtype=np.dtypes.StringDType())
        table_schema(texts.shape, "str", ("image",)).create(group, "name")[:] = texts
        return (Path(folder) / "name" / "c" / "0").stat().st_size / len(names)


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
        writer = FolderStoreWriter.create_or_resume(path, spec)
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
            "a task without its images": size(job_bytes(writer)),
        }


def job_bytes(writer: FolderStoreWriter) -> int:
    """What travels with each row group besides its images, pickled."""
    from hvae_codec.encode.job import EncodeJob  # here: it imports torch
    from hvae_codec.model.reference import ModelReference
    from hvae_codec.store.unfinished_reference import UnfinishedReference

    job = EncodeJob(
        model=ModelReference(Path("/mnt/shared/runs/large"), "0" * 64),
        store=UnfinishedReference.of(writer.row_group_writer),
        batch_size=64,
        evaluate=False,
        seed=0,
        verify=False,
        checksums=True,
    )
    return len(pickle.dumps(job.encoder))


def timed(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
