"""Makes a finished whole run slim: the model whose pruned variates are at the prior's mean, without them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..config import CONFIG_FILE
from ..errors import ModelError
from ..model.checkpoint import WEIGHTS_FILE, load_model, load_run_config, save_weights
from ..prune.slim import slim
from ..train.optimizer import FlatOptimizer
from ..train.run_folder import read_origin, save_run
from ..train.state import STATE_FOLDER, TrainState, save_state, steps_taken
from .pruned_model import left_of

SLIM_FILES = (WEIGHTS_FILE, f"{WEIGHTS_FILE}.partial", f".{WEIGHTS_FILE}.lock", STATE_FOLDER)
"""What a kill may leave before the folder is a run."""


def slim_run(whole: Path, out: Path) -> None:
    """Write the slim run `out` of the finished run `whole`, unless it is there; training it goes on with new moments.

    The configuration comes last: without it a folder is no run. Raises `ModelError` if the function of the slim model
    is another one.
    """
    if (out / CONFIG_FILE).is_file():
        return
    config, origin, model = load_run_config(whole), read_origin(whole), load_model(whole)
    if config.pruning is None or origin is None:
        raise ModelError(f"{whole} was not pruned and trained; give another run")
    small = slim(model, left_of(model, config.pruning.kept))
    out.mkdir(parents=True, exist_ok=True)
    save_weights(out / WEIGHTS_FILE, dict(small.state_dict()))
    optimizer = FlatOptimizer(small.requires_grad_(), config.optimizer, config.train.ema_decay)
    save_state(out, TrainState(small, optimizer, step=steps_taken(whole) or 0, seed=origin.seed))
    save_run(out, replace(config, model=small.config, pruning=replace(config.pruning, collapse="mean")), origin)
