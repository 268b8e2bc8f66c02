"""The sizes of a store beside those of its images in other forms."""

from __future__ import annotations

from pathlib import PurePosixPath

from rich.table import Table

from ..config import ModelConfig, config_from_dict
from ..store.reader import Store
from ..store.workers import Worker
from .tables import size_table


def store_sizes(store: Store) -> dict[str, int]:
    """Return the bytes of the store's images in several forms; the store itself comes last."""
    codes = " (int codes)" if store.codec.name == "int" else ""
    return {
        "dense latents (mean and std, float32)": 8 * stored_model_config(store).latent_dims * len(store),
        "pixels": store.image_dims * len(store),
        f"the source ({_kind_of_source(store)})": store.metadata.source.bytes,
        f"{store.path.name}{codes}": store.nbytes_on_disk(),
    }


def _kind_of_source(store: Store) -> str:
    endings = {PurePosixPath(name).suffix.lower() for name in store.names}
    if endings == {""}:
        return "an array"
    return f"{endings.pop()[1:].upper()} files" if len(endings) == 1 else "image files"


def stored_model_config(store: Store) -> ModelConfig:
    """Read the configuration of the model that encoded a store."""
    return config_from_dict({"model": store.config}).model


def store_table(store: Store) -> Table:
    """Make the table of sizes for the terminal."""
    title = f"{store.path}: {len(store):,} images, {store.kept_dims:,} latents each"
    return size_table(title, store_sizes(store), len(store), store.image_dims)


def worker_sentence(path: str, worker: Worker) -> str:
    """Say that a worker is done and others may not be."""
    return f"Worker {worker} is done; {path} appears when the last of its {worker.count} workers is."
