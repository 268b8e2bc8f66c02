"""All that resuming needs, in one file per state: weights, their moving average, the optimiser's moments, the step.

Nothing random is stored: batches, flips and noise are functions of the seed and the step.

    state/step-000000500.safetensors     tensors
    state/step-000000500.json            step, seed, seconds, and the digest of the tensors' file; written last
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import ModelError
from ..model.checkpoint import save_weights
from ..model.hvae import HVAE
from ..storage.files import write_atomically
from .optimizer import FlatOptimizer

STATE_FOLDER = "state"
STATES = 3
"""States of a run that stay on disk."""


@dataclass
class TrainState:
    """Everything that changes while training; the optimiser holds the weights that the model computes with."""

    model: HVAE
    optimizer: FlatOptimizer
    step: int = 0
    """Steps taken."""
    seed: int = 0
    seconds: float = 0.0
    """Time spent on those steps."""

    def is_finite(self) -> bool:
        """Whether every weight, average and moment is a finite number."""
        tensors = self.optimizer.tensors().values()
        return bool(torch.stack([torch.isfinite(tensor).all() for tensor in tensors]).all())


def save_state(run: Path, state: TrainState, newest: int = STATES) -> None:
    """Write `state` atomically, then drop all but the `newest` states.

    States of later steps go too: they were damaged, or belong to what this run no longer is.
    """
    folder = run / STATE_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{state.step:09d}.safetensors"
    path.with_suffix(".json").unlink(missing_ok=True)  # one of another file's digest must not outlive that file
    save_weights(path, state.optimizer.tensors())
    counters = {"step": state.step, "seed": state.seed, "seconds": round(state.seconds, 3), "sha256": _digest(path)}
    write_atomically(path.with_suffix(".json"), json.dumps(counters).encode())
    staying = [p.stem for p in _complete_states(run) if p.stem <= path.stem][-newest:]
    for file in folder.glob("step-*"):
        if _is_state_file(file) and file.name.split(".")[0] not in staying:
            file.unlink()


def load_state(run: Path, state: TrainState, on_warning: Callable[[str], None] = lambda _: None) -> Path | None:
    """Fill `state` from the newest state of `run` that can be read, and return its file; None if there is none.

    `on_warning` is called with a sentence on each damaged one. Raises `ModelError` if all are damaged.
    """
    paths = _complete_states(run)[::-1]
    for path in paths:
        try:
            counters, tensors = _read(path)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            on_warning(f"the state {path} is damaged ({error}); the one before it is used")
            continue
        state.optimizer.load(tensors)
        state.step, state.seed, state.seconds = counters["step"], counters["seed"], counters["seconds"]
        return path
    if paths:
        raise ModelError(f"no training state in {run / STATE_FOLDER} can be read; train again under another --out")
    return None


def has_state(run: Path) -> bool:
    """Whether `run` has a state to continue from."""
    return bool(_complete_states(run))


def _complete_states(run: Path) -> list[Path]:
    """List states whose counters were written, oldest first: the counters come last."""
    paths = (run / STATE_FOLDER).glob("step-*.safetensors")
    return sorted(p for p in paths if _is_state_file(p) and p.with_suffix(".json").exists())


def _is_state_file(path: Path) -> bool:
    """Whether `path` is one of a state's two files, or what a kill left of one."""
    return re.fullmatch(r"step-\d{9}\.(safetensors|json)(\.partial)?", path.name) is not None


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read counters and tensors of a state, checked to be those that were written."""
    counters = json.loads(path.with_suffix(".json").read_text())
    if counters["sha256"] != _digest(path):
        raise ValueError("its bytes are not those that were written")
    return {name: counters[name] for name in ("step", "seed", "seconds")}, load_file(path)
