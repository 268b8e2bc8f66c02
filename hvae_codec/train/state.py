"""All that resuming needs, as safetensors: weights, their moving average, the optimiser's moments, the step.

Nothing random is stored: batches, flips and noise are functions of the seed and the step.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import ModelError
from ..model.checkpoint import replace_atomically, save_weights
from ..model.hvae import HVAE

STATE_FOLDER = "state"
KEEP = 2


@dataclass
class TrainState:
    """What changes while training; tensors are shared with the model and the optimiser."""

    model: HVAE
    ema: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    step: int = 0
    """Steps taken."""
    skipped: int = 0
    """Updates left out so far."""
    seed: int = 0


def save_state(run: Path, state: TrainState) -> None:
    """Write `state/step-N.safetensors` atomically and drop all but the newest states."""
    folder = run / STATE_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{state.step:09d}.safetensors"
    save_weights(path, _tensors(state))
    counters = {"step": state.step, "skipped": state.skipped, "seed": state.seed}
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


def _tensors(state: TrainState) -> dict[str, Tensor]:
    tensors = {f"ema.{name}": tensor for name, tensor in state.ema.items()}
    for name, parameter in state.model.named_parameters():
        tensors[f"weights.{name}"] = parameter
        for key, moment in state.optimizer.state[parameter].items():
            tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(moment)
    return tensors


def _fill(state: TrainState, path: Path) -> None:
    counters = json.loads(path.with_suffix(".json").read_text())
    with safe_open(path, framework="pt") as file, torch.no_grad():
        loaded = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    with torch.no_grad():
        for name, parameter in state.model.named_parameters():
            parameter.copy_(loaded[f"weights.{name}"])
            state.ema[name].copy_(loaded[f"ema.{name}"])
    _fill_moments(state, loaded)
    state.step, state.skipped, state.seed = counters["step"], counters["skipped"], counters["seed"]


def _fill_moments(state: TrainState, loaded: dict[str, Tensor]) -> None:
    parameters = dict(state.model.named_parameters())
    for key, tensor in loaded.items():
        if key.startswith("optimizer."):
            _, moment, name = key.split(".", 2)
            parameter = parameters[name]
            if tensor.shape == parameter.shape:
                # Fused updates walk through memory: moments must lie in the same order as their weights.
                state.optimizer.state[parameter][moment] = torch.empty_like(parameter).copy_(tensor)
            else:
                counter_device = parameter.device if state.optimizer.defaults.get("fused") else "cpu"
                state.optimizer.state[parameter][moment] = tensor.to(counter_device)
