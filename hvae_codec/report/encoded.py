"""What encode says: where its ranking comes from, what the cutoff costs, what the store takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

from rich.table import Table

from ..config import ModelConfig, config_from_dict
from ..encode.pipeline import calibration_images
from ..encode.store import Store
from ..images import ImageSource
from ..model.checkpoint import model_hash
from ..model.hvae import HVAE
from ..prune.kl_stats import KLStats, load_kl_stats, save_kl_stats
from ..prune.mask import LatentMask
from ..prune.sweep import sweep
from .analysis import Stage, rank, ranking_path
from .tables import size_table

RANKING_IMAGES = 1000
COST_IMAGES = 256


@dataclass(frozen=True)
class CutoffCost:
    """Mean NELBO of the same held-out images with the kept latents and with all, bits/dim."""

    kept: float
    everything: float
    change_se: float
    """Standard error of the paired difference."""
    images: int


def find_ranking(model: HVAE, source: ImageSource, batch_size: int, seed: int, stage: Stage) -> tuple[KLStats, str]:
    """The ranking that the model's run keeps, or a new one of training images; and a sentence where it is new."""
    path = None if model.run is None else ranking_path(model.run)
    own = model_hash(model)
    if path is not None and path.exists():
        stats = load_kl_stats(path)
        if stats.model_hash == own:
            return stats, ""
    stats = rank(model, source.split("train"), RANKING_IMAGES, batch_size, seed, stage)
    if path is not None:
        save_kl_stats(path, stats)
    return stats, f"The run had no ranking of this model; made one on {stats.images:,} images."


def make_mask(stats: KLStats, fraction: float) -> tuple[LatentMask, str]:
    """The mask of a keep fraction; and a sentence where a single variate is more than that."""
    mask = LatentMask.from_keep(stats, fraction)
    if mask.kept_dims <= math.floor(fraction * mask.dims + 1e-6):
        return mask, ""
    share = 100 * mask.kept_dims / mask.dims
    return mask, f"The highest-ranked variate alone holds {share:.2g}% of the dimensions; kept it."


def cutoff_cost(
    model: HVAE,
    source: ImageSource,
    mask: LatentMask,
    batch_size: int,
    seed: int,
    progress: Callable[[int, int], None],
) -> CutoffCost:
    """NELBO with `mask` and without pruning, on at most 256 held-out images."""
    images = calibration_images(source.split("val"), COST_IMAGES)
    everything = LatentMask(tuple(keep | True for keep in mask.keep), mask.resolutions, mask.model_hash)
    kept, dense = sweep(model, images, [mask, everything], batch_size=batch_size, seed=seed, progress=progress)
    change = kept.nelbo - dense.nelbo
    error = change.std(ddof=1) / math.sqrt(len(change)) if len(change) > 1 else math.nan
    return CutoffCost(kept.nelbo.mean(), dense.nelbo.mean(), error, len(images))


def cost_sentence(cost: CutoffCost, mask: LatentMask) -> str:
    """What the cutoff costs, for the terminal."""
    change = cost.kept - cost.everything
    error = "" if math.isnan(cost.change_se) else f" ± {cost.change_se:.4f}"
    return (
        f"Kept {mask.kept_dims:,} of {mask.dims:,} latent dimensions ({100 * mask.kept_dims / mask.dims:.2f}%, "
        f"{mask.kept_variates} variates).\n"
        f"NELBO {cost.kept:.3f} bits/dim against {cost.everything:.3f} with all: {change:+.4f}{error} "
        f"({100 * change / cost.everything:+.2f}%), on {cost.images:,} held-out images."
    )


def store_sizes(store: Store) -> dict[str, int]:
    """Bytes of the store's images in several forms; the store itself comes last."""
    config = stored_model_config(store)
    sizes = {
        "dense latents (mean and std, float32)": 8 * config.latent_dims * len(store),
        "pixels": store.image_dims * len(store),
        f"the source ({_kind_of_source(store)})": int(store.metadata["source"]["bytes"]),
        f"{store.path.name} ({store.codec.name} codes)" if store.codec.name == "int" else store.path.name: 0,
    }
    return {name: size or store.nbytes_on_disk() for name, size in sizes.items()}


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
