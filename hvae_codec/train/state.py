"""All that resuming needs, as safetensors: weights, their moving average, the optimiser's moments, the step.

Nothing random is stored: batches, flips and noise are functions of the seed and the step.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..errors import ModelError
from ..model.checkpoint import replace_atomically, save_weights
from ..model.hvae import HVAE
from .optimizer import FlatOptimizer

STATE_FOLDER = "state"
KEEP = 2


@dataclass
class TrainState:
    """What changes while training; the optimiser holds the weights that the model computes with."""

    model: HVAE
    optimizer: FlatOptimizer
    step: int = 0
    """Steps taken."""
    seed: int = 0


def save_state(run: Path, state: TrainState) -> None:
    """Write `state/step-N.safetensors` atomically and drop all but the newest states."""
    folder = run / STATE_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{state.step:09d}.safetensors"
    save_weights(path, state.optimizer.tensors())
    counters = {"step": state.step, "seed": state.seed}
    replace_atomically(path.with_suffix(".json"), json.dumps(counters).encode())
    for old in _complete_states(run)[:-KEEP]:
        old.unlink()
        old.with_suffix(".json").unlink()


def load_state(run: Path, state: TrainState) -> Path | None:
    """Fill `state` from the newest state of `run` that can be read; None where there is none.

    Raises `ModelError` where states exist and none can be read.
    """
    paths = _complete_states(run)[::-1]
    for path in paths:
        try:
            _fill(state, path)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError):
            continue
        return path
    if paths:
        raise ModelError(f"no training state in {run / STATE_FOLDER} can be read; train again under another --out")
    return None


def _complete_states(run: Path) -> list[Path]:
    """States whose counters were written, oldest first: the counters come last."""
    paths = (run / STATE_FOLDER).glob("step-*.safetensors")
    return sorted(p for p in paths if re.fullmatch(r"step-\d{9}", p.stem) and p.with_suffix(".json").exists())


def _fill(state: TrainState, path: Path) -> None:
    counters = json.loads(path.with_suffix(".json").read_text())
    with safe_open(path, framework="pt") as file:
        loaded = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    state.optimizer.load(loaded)
    state.step, state.seed = counters["step"], counters["seed"]
