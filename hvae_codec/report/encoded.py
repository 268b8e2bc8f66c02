"""What encode says: where its ranking comes from, what the store takes."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from rich.table import Table

from ..analysis.cutoff_table import rank, ranking_path
from ..config import ModelConfig, config_from_dict
from ..data.sources import ImageSource
from ..encode.pipeline import SAMPLE_IMAGES
from ..model.checkpoint import model_hash
from ..model.hvae import HVAE
from ..progress import Stage
from ..prune.kl_stats import KLStats, load_kl_stats, save_kl_stats
from ..store.reader import Store
from ..store.workers import Worker
from .tables import size_table


def find_ranking(model: HVAE, source: ImageSource, batch_size: int, seed: int, stage: Stage) -> tuple[KLStats, str]:
    """The ranking that the model's run keeps, or a new one of training images; and a sentence on where it is from."""
    path = None if model.run is None else ranking_path(model.run)
    training = source.split("train")
    if found := _kept_ranking(path, model, training):
        return found
    stats = rank(model, training, SAMPLE_IMAGES, batch_size, seed, stage)
    # Another worker may have made one meanwhile: all must use the same.
    if found := _kept_ranking(path, model, training):
        return found
    made = f"The run had no ranking of this model; made one of {stats.images:,} training images"
    kept = "" if path is None else f"; kept: {keep_ranking(path, stats)}"
    return stats, f"{made}{kept}."


def _kept_ranking(path: Path | None, model: HVAE, training: ImageSource) -> tuple[KLStats, str] | None:
    """The ranking at `path` and a sentence about it; None where there is none of this model."""
    if path is None or not path.exists():
        return None
    stats = load_kl_stats(path)
    if stats.model_hash != model_hash(model):
        return None
    same = stats.source == training.evenly(stats.images).fingerprint
    images = "these training images" if same else "other images than these"
    return stats, f"Ranking: {path}, of {stats.images:,} of {images}."


def kept_ranking(model: HVAE) -> KLStats | None:
    """The ranking that the model's run keeps; None where it keeps none, or one of another model."""
    path = None if model.run is None else ranking_path(model.run)
    stats = load_kl_stats(path) if path is not None and path.exists() else None
    return stats if stats is not None and stats.model_hash == model_hash(model) else None


def keep_ranking(path: Path, stats: KLStats) -> str:
    """Keep a ranking in its run, which need not be writable; says where it is, or why it could not be kept."""
    try:
        save_kl_stats(path, stats)
    except OSError as error:
        return f"could not be kept in {path} ({error.strerror})"
    return str(path)


def store_sizes(store: Store) -> dict[str, int]:
    """Bytes of the store's images in several forms; the store itself comes last."""
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
    """The configuration of the model that encoded a store."""
    return config_from_dict({"model": store.config}).model


def store_table(store: Store) -> Table:
    """The sizes, for the terminal."""
    title = f"{store.path}: {len(store):,} images, {store.kept_dims:,} latents each"
    return size_table(title, store_sizes(store), len(store), store.image_dims)


def worker_sentence(path: str, worker: Worker) -> str:
    """What is said where a worker is done and others are not."""
    return f"Worker {worker} is done; {path} appears when the last of its {worker.count} workers is."
