"""What encode, append and decode did, as plain data for scripts."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ..analysis.cutoff_cost import ChosenCutoff
from ..analysis.ranking_file import FoundRanking
from ..data.sources import ImageSource
from ..store.disk_use import disk_use
from ..store.reader import Store
from ..store.workers import Worker
from .about import store_sizes
from .forecast import cutoff_data


def store_data(store: Store, given: ImageSource, seconds: float) -> dict[str, Any]:
    """Describe a finished store, to which a command that took `seconds` gave images."""
    use = disk_use(store)
    *others, own = store_sizes(store, use).items()
    return {
        "store": str(store.path),
        "finished": True,
        "images": len(store),
        "images_given": len(given),
        "images_skipped": dict(sorted(Counter(given.skipped.values()).items())),
        "row_groups": len(store.row_groups),
        "latents_per_image": store.kept_dims,
        "bytes": own[1],
        "bytes_per_image": own[1] / len(store),
        "bits_per_dim": 8 * use.total / (len(store) * store.image_dims),
        "bytes_by_part": use.parts(),
        "bytes_in_other_forms": dict(others),
        "seconds": seconds,
    }


def encoded_data(
    store: Store, given: ImageSource, seconds: float, ranking: FoundRanking, chosen: ChosenCutoff
) -> dict[str, Any]:
    """Describe a store that was encoded, its ranking, and what its cutoff costs."""
    path = None if ranking.path is None else str(ranking.path)
    ranked = {"path": path, "images": ranking.stats.images, "is_new": ranking.is_new}
    return {**store_data(store, given, seconds), "ranking": ranked, "cutoff": cutoff_data(chosen)}


def unfinished_data(path: str, worker: Worker, seconds: float) -> dict[str, Any]:
    """Describe the work of one worker while row groups of others are missing."""
    return {"store": path, "finished": False, "worker": str(worker), "seconds": seconds}


def decoded_data(store: Store, out: str, images: int, file_format: str, seconds: float) -> dict[str, Any]:
    """Describe a finished decode."""
    return {"store": str(store.path), "out": out, "images": images, "format": file_format, "seconds": seconds}
