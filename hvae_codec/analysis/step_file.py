"""The steps that a run stores: each found once, and read by every worker and command that codes with the same mask.

RUN/analysis/steps.json    {"steps": [{"model_hash", "mask", "ranking", "tolerance", "step", ...}, ...]}
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ModelError
from ..prune.kl_stats import KLStats
from ..prune.mask import LatentMask
from ..storage.files import write_atomically
from ..storage.locks import waiting_lock
from .ranking_file import FOLDER
from .step_search import FoundStep

STEPS_FILE = "steps.json"
_MAY_LACK = ("change_se", "confidence")


def steps_path(run: Path) -> Path:
    """Return where a run stores its steps."""
    return run / FOLDER / STEPS_FILE


def step_key(mask: LatentMask, stats: KLStats, tolerance: float) -> dict[str, Any]:
    """Tell what a step is for, as plain data: the model, what is kept, the stds that it multiplies, the tolerance."""
    stds, what = np.concatenate(stats.posterior_std).astype("<f8").tobytes(), mask.to_dict()
    kept = json.dumps([what["granularity"], what["groups"]], sort_keys=True)
    return {
        "model_hash": stats.model_hash,
        "kept_dims": mask.kept_dims,  # for readers
        "mask": _digest(kept.encode()),
        "ranking": _digest(stds),
        "tolerance": tolerance,
    }


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def stored_step(path: Path, key: dict[str, Any]) -> FoundStep | None:
    """Read the step of `key` from a run's file; None if it has none. Raises `ModelError` if the file is damaged."""
    for entry in _entries(path):
        if all(entry.get(name) == value for name, value in key.items()):
            try:
                return _found(entry)
            except (KeyError, TypeError, ValueError) as error:
                raise _damaged(path, error) from None
    return None


def _found(entry: dict[str, Any]) -> FoundStep:
    known = {"source": ""} | entry  # entries of before say nothing of their images
    values = {field.name: known[field.name] for field in dataclasses.fields(FoundStep)}
    step = FoundStep(**values | {name: math.nan for name in _MAY_LACK if values[name] is None})
    if not 0.0 < step.step < math.inf:
        raise ValueError(f"a step of {step.step}")
    return step


def _entry(found: FoundStep) -> dict[str, Any]:
    """Return a step as plain data; JSON has no NaN, so that figures that one image does not give are null."""
    values = dataclasses.asdict(found)
    return values | {name: None for name in _MAY_LACK if math.isnan(values[name])}


def keep_step(path: Path, key: dict[str, Any], found: FoundStep) -> FoundStep:
    """Store a step in its run, and return the one that counts: of several processes, that of the first.

    Raises `OSError` if the run cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with waiting_lock(path.with_name(".steps.lock")):
        first = stored_step(path, key)
        if first is not None:
            return first
        entries = [*_entries(path), key | _entry(found)]
        write_atomically(path, json.dumps({"steps": entries}, indent=1).encode() + b"\n")
    return found


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["steps"]
        if not all(isinstance(entry, dict) for entry in entries):
            raise ValueError("a step is no table of keys")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from None
    return list(entries)


def _damaged(path: Path, reason: object) -> ModelError:
    return ModelError(f"cannot read the steps in {path} ({reason}); remove the file, and they are looked for again")
