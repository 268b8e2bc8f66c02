"""All that resuming needs, in one file per state: weights, their moving average, the optimiser's moments, the step.

Nothing random is stored: batches, flips and noise are functions of the seed and the step.

    state/step-000000500.safetensors     tensors
    state/step-000000500.json            step, seed, seconds, and the digest of the tensors' file; written last
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import ModelError
from ..model.checkpoint import save_weights
from ..model.hvae import HVAE
from ..storage.files import write_atomically
from .optimizer import FlatOptimizer

STATE_FOLDER = "state"
STATES = 3  # states of a run that stay on disk
_NAME = "step-" + 9 * "[0-9]"
_ENDINGS = (".safetensors", ".json", ".safetensors.partial", ".json.partial")
"""A state's two files, and what a kill left of them, besides locks."""


@dataclass
class TrainState:
    """Everything that changes while training; the optimiser holds the weights that the model computes with."""

    model: HVAE
    optimizer: FlatOptimizer
    step: int = 0  # steps taken
    seed: int = 0
    seconds: float = 0.0  # time spent on those steps

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
    for ending in _ENDINGS:
        for file in folder.glob(_NAME + ending):
            if file.name.removesuffix(ending) not in staying:
                file.unlink()
    for left in folder.glob(f".{_NAME}.*.lock"):  # nobody else writes here
        left.unlink()


def load_state(run: Path, state: TrainState, on_warning: Callable[[str], None] = lambda _: None) -> Path | None:
    """Fill `state` from the newest state of `run` that can be read, and return its file; None if there is none.

    `on_warning` is called with a sentence on each damaged one. Raises `ModelError` if all are damaged,
    `PermissionError` if one may not be read.
    """
    paths = _complete_states(run)[::-1]
    for path in paths:
        try:
            counters = json.loads(path.with_suffix(".json").read_text())
            step, seed, seconds = counters["step"], counters["seed"], counters["seconds"]
            if counters["sha256"] != _digest(path):
                raise ValueError("its bytes are not those that were written")
            tensors = load_file(path)
        except PermissionError:  # it may be whole: its steps must not be taken, and written, again
            raise
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            on_warning(f"the state {path} is damaged ({error}); the one before it is used")
            continue
        state.optimizer.load(tensors)
        state.step, state.seed, state.seconds = step, seed, seconds
        return path
    if paths:
        raise ModelError(f"no training state in {run / STATE_FOLDER} can be read; train again under another --out")
    return None


def has_state(run: Path) -> bool:
    """Whether `run` has a state to continue from."""
    return bool(_complete_states(run))


def steps_taken(run: Path) -> int | None:
    """The step of the newest state of `run`; None if it has none, as imported runs.

    Of a run that is being trained, the weights may be a little ahead: they are written first.
    """
    states = _complete_states(run)
    return int(states[-1].stem.removeprefix("step-")) if states else None


def _complete_states(run: Path) -> list[Path]:
    """List states whose counters were written, oldest first: the counters come last."""
    paths = (run / STATE_FOLDER).glob(f"{_NAME}.safetensors")
    return sorted(path for path in paths if path.with_suffix(".json").exists())


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
