"""What info says of a run: its model, whether it is trained, and its cutoff table."""

from __future__ import annotations

from pathlib import Path

import torch

from ..analysis.ranking_file import FOLDER
from ..config import Config, config_to_dict
from ..model.checkpoint import WEIGHTS_FILE, find_run, load_run_config
from ..model.hvae import HVAE
from .cutoffs import cutoff_table, load_table, plain_rows
from .facts import Facts


def count_parameters(config: Config) -> int:
    """Count the parameters of the model that `config` describes; none is allocated."""
    with torch.device("meta"):
        return sum(p.numel() for p in HVAE(config.model).parameters())


def describe_run(path: Path) -> Facts:
    """Collect facts about a run; `ModelError` if it is missing or damaged."""
    run = find_run(path)
    config = load_run_config(run)
    model, parameters = config.model, count_parameters(config)
    trained = (run / WEIGHTS_FILE).exists()
    pairs = {
        "images": f"{model.channels} × {model.image_size} × {model.image_size}, {model.bits} bits, {model.output}",
        "parameters": f"{parameters:,}",
        "latent groups": f"{len(model.groups)}",
        "latent dimensions": f"{model.latent_dims:,}",
        "weights": "there" if trained else "not yet: training has not reached its first state",
    }
    cutoffs = load_table(run / FOLDER)
    data = {
        "kind": "run",
        "path": str(run),
        "trained": trained,
        "parameters": parameters,
        "latent_dims": model.latent_dims,
        "groups": len(model.groups),
        "config": config_to_dict(config),
        "cutoffs": None if cutoffs is None else plain_rows(cutoffs[0]),
    }
    return Facts(run, data, pairs, () if cutoffs is None else (cutoff_table(*cutoffs),))
