"""The sizes of a store beside those of its images in other forms."""

from __future__ import annotations

from pathlib import PurePosixPath

from rich.table import Table

from ..config import config_from_dict
from ..store.reader import Store
from ..store.workers import Worker


def store_sizes(store: Store) -> dict[str, int]:
    """Return the bytes of the store's images in several forms; the store itself comes last."""
    codes = " (int codes)" if store.codec.name == "int" else ""
    model = config_from_dict({"model": store.config}).model
    return {
        "dense latents (mean and std, float32)": 8 * model.latent_dims * len(store),
        "pixels": store.image_dims * len(store),
        f"the source ({_kind_of_source(store)})": store.metadata.source.bytes,
        f"{store.path.name}{codes}": store.nbytes_on_disk(),
    }


def _kind_of_source(store: Store) -> str:
    first, *others = {PurePosixPath(name).suffix.lower() for name in store.names}
    if others:
        return "image files"
    return f"{first[1:].upper()} files" if first else "an array"


def store_table(store: Store) -> Table:
    """Make the table of sizes for the terminal, and how many times the store's each is."""
    title = f"{store.path}: {len(store):,} images, {store.kept_dims:,} latents each"
    rich, sizes, images = Table(title=title, title_justify="left"), store_sizes(store), len(store)
    rich.add_column("")
    for heading in ("bytes", "bytes an image", "bits/dim", "times the store"):
        rich.add_column(heading, justify="right")
    own = list(sizes.values())[-1]
    for name, size in sizes.items():
        bits = 8 * size / images / store.image_dims
        rich.add_row(name, f"{size:,.0f}", f"{size / images:,.1f}", f"{bits:.3f}", f"{size / own:.1f}")
    return rich


def worker_sentence(path: str, worker: Worker) -> str:
    """Say that a worker is done and others may not be."""
    return f"Worker {worker} is done; {path} appears when the last of its {worker.count} workers is."
