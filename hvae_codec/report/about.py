"""Facts about a store or a run, and how info shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from ..config import CONFIG_FILE, Config, config_to_dict
from ..errors import DataError
from ..storage.location import Location, LocationLike, location_of
from ..store.group_file import find_copy
from ..store.reader import Store
from .encoded import store_sizes, store_table


@dataclass(frozen=True)
class Facts:
    """Of one store or run: plain data for scripts, and tables for the terminal."""

    path: Path | Location
    data: dict[str, Any]
    pairs: dict[str, str]
    tables: Sequence[Table] = ()  # shown below the pairs

    def render(self) -> list[Table]:
        """Make the tables for the terminal."""
        pairs = Table(title=str(self.path), show_header=False, title_justify="left")
        pairs.add_column(style="bold")
        for pair in self.pairs.items():
            pairs.add_row(*pair)
        return [pairs, *self.tables]


def describe(path: LocationLike) -> Facts:
    """Collect facts about the store or run at `path`.

    Raises `DataError` if it is neither, `ModelError` if a run is missing or damaged.
    """
    path = location_of(path)
    if path.folder is not None and (path.name == "latest" or (path / CONFIG_FILE).is_file()):
        return _run_facts(path.folder)
    if path.folder is not None and path.exists() and not (path / "zarr.json").is_file() and find_copy(path) is None:
        raise DataError(f"{path} is neither a store (it has no zarr.json) nor a run (it has no {CONFIG_FILE})")
    return _store_facts(Store.open(path))


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
    data = {
        "kind": "store",
        "path": str(store.path),
        "images": len(store),
        "kept_dims": store.kept_dims,
        "granularity": store.columns.granularity,
        "labels": labels,
        "codec": store.codec.to_dict(),
        "model_hash": store.model_hash,
        "run": store.run,
        "format_version": store.format_version,
        "bits_per_dim": store.bits_per_dim(),
        "bytes": store_sizes(store),
    }
    return Facts(store.path, data, pairs, (store_table(store),))


def count_parameters(config: Config) -> int:
    """Count the parameters of the model that `config` describes; none is allocated."""
    import torch

    from ..model.hvae import HVAE

    with torch.device("meta"):
        return sum(p.numel() for p in HVAE(config.model).parameters())


def _run_facts(path: Path) -> Facts:
    from ..analysis.ranking_file import FOLDER  # with torch, which a store is described without
    from ..model.checkpoint import WEIGHTS_FILE, find_run, load_run_config
    from .cutoffs import cutoff_table, load_table, plain_rows

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
