"""The ranking that a run stores: measured once, and read by every encode after it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.training_and_held_out import TrainingAndHeldOut
from ..encode.pipeline import SAMPLE_IMAGES
from ..engine.engine import Engine
from ..engine.tally import Tally
from ..errors import ModelError
from ..model.checkpoint import model_hash
from ..model.hvae import HVAE
from ..progress import Stage
from ..prune.kl_stats import KLStats, kl_stats, load_kl_stats, save_kl_stats

FOLDER = "analysis"
RANKING_FILE = "kl_stats.npz"


@dataclass(frozen=True, kw_only=True)
class FoundRanking:
    """A ranking, and where it comes from."""

    stats: KLStats
    path: Path | None  # where the run stores it; None if the model has no run
    is_new: bool  # whether it was measured just now
    is_of_these_images: bool = True  # whether it was measured on the training images at hand
    write_error: str = ""  # why a new one could not be stored; empty if it was


def ranking_path(run: Path) -> Path:
    """Return where a run stores its ranking."""
    return run / FOLDER / RANKING_FILE


def find_ranking(
    model: HVAE,
    images: TrainingAndHeldOut,
    batch_size: int | None,
    seed: int,
    stage: Stage,
    *,
    engine: Engine | None = None,
    device: str | None = None,
    tally: Tally | None = None,
) -> FoundRanking:
    """Read the ranking that the model's run stores, or measure one on training images and store it.

    It is measured on `engine`, as `kl_stats` says. Raises `DataError` if it takes training images and there are none.
    """
    path, stored = model.run and ranking_path(model.run), stored_ranking(model)
    if stored is None:
        sample, progress = images.training.evenly(SAMPLE_IMAGES), stage("Ranking by KL")
        work: dict[str, Any] = {"progress": progress, "engine": engine, "device": device, "tally": tally}
        stats = kl_stats(model, sample, batch_size=batch_size, seed=seed, **work)
        stored = stored_ranking(model)  # another worker may have made one meanwhile: all must use the same
        if stored is None:
            error = save_ranking(path, stats) if path else ""
            return FoundRanking(stats=stats, path=path, is_new=True, write_error=error)
    same = images.has_training and stored.source == images.training.evenly(stored.images).fingerprint
    return FoundRanking(stats=stored, path=path, is_new=False, is_of_these_images=same)


def stored_ranking(model: HVAE) -> KLStats | None:
    """Read the ranking that the model's run stores; None if there is none, or one of another model."""
    if model.run is None or not ranking_path(model.run).exists():
        return None
    stats = load_kl_stats(ranking_path(model.run))
    return stats if stats.model_hash == model_hash(model) else None


@dataclass(frozen=True, kw_only=True)
class KeptRanking:
    """What became of a ranking that was to be stored in a run."""

    path: Path
    images: int  # that it was measured on
    stays: KLStats | None = None  # another one of this model, which the run had and has still
    replaced: KLStats | None = None  # another one of this model, which the run had
    write_error: str = ""  # why it could not be stored; empty if it was, or was not to be


def keep_ranking(path: Path, stats: KLStats, *, overwrite: bool) -> KeptRanking:
    """Store a ranking, unless there is one of this model at `path` that was made of more images.

    Encodes read it, also those that go on tomorrow: a quick look at a few images must not change what they keep.
    `overwrite` stores it in any case.
    """
    before = _other_ranking(path, stats)
    if before is not None and not overwrite and before.images > stats.images:
        return KeptRanking(path=path, images=stats.images, stays=before)
    error = save_ranking(path, stats)
    return KeptRanking(path=path, images=stats.images, replaced=None if error else before, write_error=error)


def _other_ranking(path: Path, stats: KLStats) -> KLStats | None:
    """Read the ranking at `path` if it is one of the same model with other figures; None, too, if it is damaged."""
    try:
        there = load_kl_stats(path)
    except (ModelError, OSError):
        return None
    same = all(map(np.array_equal, there.kl_bits, stats.kl_bits)) and there.images == stats.images
    return None if same or there.model_hash != stats.model_hash else there


def save_ranking(path: Path, stats: KLStats) -> str:
    """Store a ranking in its run, which need not be writable; returns why it could not be, empty if it was."""
    try:
        save_kl_stats(path, stats)
    except OSError as error:
        return str(error.strerror)
    return ""
