"""What info says of a store or a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.table import Table

from ..analysis.cutoff_table import FOLDER
from ..config import Config, config_to_dict
from ..errors import DataError
from ..model.checkpoint import CONFIG_FILE, LATEST, WEIGHTS_FILE, find_run, load_run_config
from ..model.hvae import HVAE
from ..storage.location import Location, LocationLike, location_of
from ..store.group_file import find_copy
from ..store.reader import Store
from .encoded import store_sizes, store_table
from .tables import cutoff_table, load_table, pairs_table, plain_rows


@dataclass(frozen=True)
class Facts:
    """Of one store or run: plain data for scripts, and what its tables are made from."""

    path: Path | Location
    data: dict[str, Any]
    pairs: dict[str, str]
    store: Store | None = None
    cutoffs: tuple[pd.DataFrame, dict[str, Any]] | None = field(default=None)


def describe(path: LocationLike) -> Facts:
    """Facts about the store or run at `path`; raises `DataError` where it is neither."""
    path = location_of(path)
    if path.folder is None:
        return _store_facts(Store.open(path))
    if path.name == LATEST or (path / CONFIG_FILE).is_file():
        return _run_facts(find_run(path.folder))
    if path.exists() and not (path / "zarr.json").is_file() and find_copy(path) is None:
        raise DataError(f"{path} is neither a store (it has no zarr.json) nor a run (it has no {CONFIG_FILE})")
    return _store_facts(Store.open(path))


def count_parameters(config: Config) -> int:
    """Parameters of the model that `config` describes; none is allocated."""
    with torch.device("meta"):
        return sum(p.numel() for p in HVAE(config.model).parameters())


def _run_facts(run: Path) -> Facts:
    config = load_run_config(run)
    model = config.model
    trained = (run / WEIGHTS_FILE).exists()
    pairs = {
        "images": f"{model.channels} × {model.image_size} × {model.image_size}, {model.bits} bits, {model.output}",
        "parameters": f"{count_parameters(config):,}",
        "latent groups": f"{len(model.groups)}",
        "latent dimensions": f"{model.latent_dims:,}",
        "weights": "there" if trained else "not yet: training has not reached its first state",
    }
    cutoffs = load_table(run / FOLDER)
    data = {"kind": "run", "path": str(run), "trained": trained, "parameters": count_parameters(config)}
    data |= {"latent_dims": model.latent_dims, "groups": len(model.groups), "config": config_to_dict(config)}
    data["cutoffs"] = None if cutoffs is None else plain_rows(cutoffs[0])
    return Facts(run, data, pairs, cutoffs=cutoffs)


def _store_facts(store: Store) -> Facts:
    labels = sorted(set(store.labels) - {""})
    arrays = ", ".join(f"z{r} {list(store.columns.item(r))}" for r in store.resolutions)
    pairs = {
        "images": f"{len(store):,}, in {len(labels)} classes" if labels else f"{len(store):,}",
        "arrays": f"{arrays}, {store.codec.dtype}",
        "codec": ", ".join(f"{key} {value}" for key, value in store.codec.to_dict().items()),
        "model": f"{store.model_hash[:12]} ({store.run})",
        "format version": str(store.format_version),
    }
    data = {"kind": "store", "path": str(store.path), "images": len(store), "kept_dims": store.kept_dims}
    data |= {
        "granularity": store.columns.granularity,
        "labels": labels,
        "codec": store.codec.to_dict(),
        "model_hash": store.model_hash,
        "run": store.run,
    }
    data |= {"format_version": store.format_version, "bits_per_dim": store.bits_per_dim(), "bytes": store_sizes(store)}
    return Facts(store.path, data, pairs, store=store)


def render(facts: Facts) -> list[Table]:
    """The tables for the terminal."""
    tables = [pairs_table(str(facts.path), facts.pairs)]
    if facts.store is not None:
        tables.append(store_table(facts.store))
    if facts.cutoffs is not None:
        tables.append(cutoff_table(*facts.cutoffs))
    return tables
