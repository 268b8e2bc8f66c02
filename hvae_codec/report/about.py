"""Facts about a store or a run, and how info shows them; sizes of a store beside its images in other forms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path, PurePosixPath

from rich.table import Table

from ..config import CONFIG_FILE, Config, ModelConfig, PruningConfig, config_from_dict, config_to_dict
from ..data.preprocessing import Preprocessing
from ..data.splits import PARTS
from ..errors import DataError, ModelError, StoreError
from ..model.kept_weights import kept_hashes, kept_weights
from ..storage.location import Location, LocationLike, location_of
from ..store.disk_use import DiskUse, disk_use
from ..store.group_file import find_copy
from ..store.reader import Store
from ..store.unfinished import UnfinishedStore, find_unfinished
from ..store.workers import Worker
from .codec_text import store_codec_text
from .counts import count
from .facts import Facts
from .unfinished import progress_text, unfinished_facts


def describe(path: LocationLike) -> Facts:
    """Collect facts about the store or run at `path`; of a store that is being written, how far it is.

    Raises `DataError` if it is neither, `ModelError` if a run is missing or damaged.
    """
    path = location_of(path)
    if path.folder is not None and (path.name == "latest" or (path / CONFIG_FILE).is_file()):
        return _run_facts(path.folder)
    unfinished = find_unfinished(path)
    if unfinished is not None and (unfinished.path != path or not _is_taken(path)):
        return unfinished_facts(unfinished)
    if path.folder is not None and path.exists() and not (path / "zarr.json").is_file() and find_copy(path) is None:
        raise DataError(f"{path} is neither a store (it has no zarr.json) nor a run (it has no {CONFIG_FILE})")
    return _store_facts(Store.open(path), unfinished)


def _is_taken(path: Location) -> bool:
    """Whether there is a finished store, or what is left of one."""
    return path.exists() if path.folder is not None else (path / "zarr.json").is_file()


def _store_facts(store: Store, unfinished: UnfinishedStore | None = None) -> Facts:
    labels = sorted(set(store.labels) - {""})
    splits = None if store.splits is None else {part or "none": store.splits.count(part) for part in (*PARTS, "")}
    pairs = {
        "images": f"{len(store):,}, in {len(labels)} classes" if labels else f"{len(store):,}",
        **({} if splits is None else {"splits": _splits_text(splits)}),
        **_preprocessing_text(Preprocessing.from_dict(store.preprocessing, str(store.path))),
        "arrays": ", ".join(f"z{r} {list(store.columns.item(r))} {store.dtypes[r]}" for r in store.resolutions),
        "packing": store.metadata.packing,
        "codec": store_codec_text(store),
        "model": f"{store.model_hash[:12]} ({store.run})",
        "weights": _weights_of(store),
        "format version": str(store.format_version),
        **({} if unfinished is None else {"to replace it": f"{progress_text(unfinished)}; {unfinished.location}"}),
    }
    use = disk_use(store)
    data = {
        "kind": "store",
        "path": str(store.path),
        "images": len(store),
        "kept_dims": store.kept_dims,
        "granularity": store.columns.granularity,
        "labels": labels,
        "splits": splits,
        "preprocessing": store.preprocessing,
        "codec": store.codec.to_dict(),
        "packing": store.metadata.packing,
        "dtypes": {str(resolution): dtype for resolution, dtype in store.dtypes.items()},
        "model_hash": store.model_hash,
        "run": store.run,
        "format_version": store.format_version,
        "bits_per_dim": 8 * use.total / (len(store) * store.image_dims),
        "bytes": store_sizes(store, use),
        "bytes_by_part": use.parts(),
        **({} if unfinished is None else {"unfinished": unfinished_facts(unfinished).data}),
    }
    return Facts(store.path, data, pairs, (store_table(store, use),))


def _splits_text(splits: Mapping[str, int]) -> str:
    """Say how many images are of each split.

    >>> _splits_text({"train": 1800, "val": 200, "test": 0, "none": 3})
    'train 1,800, val 200, none 3'
    """
    return ", ".join(f"{part} {number:,}" for part, number in splits.items() if number)


def _preprocessing_text(how: Preprocessing) -> dict[str, str]:
    return {"preprocessing": how.flags()} if how != Preprocessing() else {}


def _weights_of(store: Store) -> str:
    """Say where the weights are that decode the store, as far as names of files tell."""
    from ..encode.encoded_store import find_run

    if embedded := store.metadata.model.embedded:
        return "the decoder, in the store" if embedded == "decoder" else "in the store"
    try:
        run = find_run(store.path, store.run)
    except StoreError:
        return f"not here: there is no run at {store.run}"
    kept = kept_weights(run, store.model_hash)
    return str(kept) if kept.exists() else f"those of {run}, if it was not trained on since"


def count_parameters(config: Config) -> int:
    """Count the parameters of the model that `config` describes; none is allocated."""
    import torch

    from ..model.hvae import HVAE

    with torch.device("meta"):
        return sum(p.numel() for p in HVAE(config.model).parameters())


def _run_facts(path: Path) -> Facts:
    from ..analysis.ranking_file import FOLDER  # with torch, which a store is described without
    from ..model.checkpoint import WEIGHTS_FILE, find_run, load_run_config
    from ..published.record import read_record
    from ..train.run_folder import begun_preprocessing
    from ..train.state import steps_taken
    from .cutoffs import cutoff_table, load_table, plain_rows

    run = find_run(path)
    config = load_run_config(run)
    model, parameters = config.model, count_parameters(config)
    shape = f"{model.channels} × {model.image_size} × {model.image_size}"
    trained, (hash_, weights) = (run / WEIGHTS_FILE).exists(), _weights_in(run, model)
    steps, kept, imported = steps_taken(run), kept_hashes(run), read_record(run)
    preprocessing = begun_preprocessing(run) or Preprocessing()
    pairs = {
        "images": f"{shape}, {count(model.pixel_bits, 'bit')}, {model.output}",
        **_preprocessing_text(preprocessing),
        "parameters": f"{parameters:,}",
        "latent groups": f"{len(model.groups)}",
        "latent dimensions": _latent_dims_text(model),
        **({"pruned": _pruned_text(config.pruning, config.model)} if config.pruning else {}),
        "weights": weights,
        **({"imported": str(imported)} if imported else {}),
        "steps": _steps_text(steps, config.train.steps, trained),
        "kept weights": f"{len(kept)}, of stores: {', '.join(name[:12] for name in kept)}" if kept else "none",
    }
    cutoffs = load_table(run / FOLDER)
    data = {
        "kind": "run",
        "path": str(run),
        "preprocessing": preprocessing.to_dict(),
        "trained": trained,
        "model_hash": hash_,
        "steps": steps,
        "kept_weights": kept,
        "imported": imported and asdict(imported),
        "parameters": parameters,
        "latent_dims": model.latent_dims,
        "unpruned_dims": model.unpruned_dims,
        "groups": len(model.groups),
        "config": config_to_dict(config),
        "cutoffs": None if cutoffs is None else plain_rows(cutoffs[0]),
    }
    return Facts(run, data, pairs, () if cutoffs is None else (cutoff_table(*cutoffs),))


def _latent_dims_text(model: ModelConfig) -> str:
    pruned = f" of {model.unpruned_dims:,}; the rest was pruned away" if model.is_slim else ""
    return f"{model.latent_dims:,}{pruned}"


def _pruned_text(pruning: PruningConfig, model: ModelConfig) -> str:
    """Say what the run was pruned to, of which one, and what became of the rest."""
    what = {"mean": "the rest at the prior's mean", "sample": "the rest sampled from the prior"}[pruning.collapse]
    codes = ", trained for codes with learned steps" if model.learned_steps else ""
    return f"to {pruning.rule} of {pruning.run} ({pruning.model_hash[:12]}), {what}{codes}"


def _weights_in(run: Path, model: ModelConfig) -> tuple[str | None, str]:
    """The hash of the weights of a run and its beginning, or None and what is wrong with them."""
    from ..model.checkpoint import WEIGHTS_FILE, load_weights, weights_hash

    if not (run / WEIGHTS_FILE).exists():
        return None, "not yet: training has not reached its first state"
    try:
        hash_ = weights_hash(model, load_weights(run / WEIGHTS_FILE))
    except (ModelError, OSError) as error:
        return None, str(error)
    return hash_, hash_[:12]


def _steps_text(taken: int | None, steps: int, trained: bool) -> str:
    if taken is None:
        return "trained elsewhere" if trained else f"0 of {steps:,}"
    return f"{taken:,} of {steps:,}" + (", finished" if taken >= steps else "")


def store_sizes(store: Store, use: DiskUse) -> dict[str, int]:
    """Return the bytes of the store's images in several forms; the store itself, whose files are `use`, comes last."""
    codes = " (int codes)" if store.codec.name == "int" else ""
    model = config_from_dict({"model": store.config}).model
    depth = "" if model.pixel_bits == 8 else f" ({count(model.pixel_bits, 'bit')})"
    return {
        "dense latents (mean and std, float32)": 8 * model.unpruned_dims * len(store),
        f"pixels{depth}": -(-model.pixel_bits * store.image_dims * len(store) // 8),
        f"the source{_kind_of_source(store)}": store.metadata.source.bytes,
        f"{store.path.name}{codes}": use.total,
    }


def _kind_of_source(store: Store) -> str:
    """Name the files by the endings of their names; images of arrays, Parquet files and data sets have none."""
    first, *others = {PurePosixPath(name).suffix.lower() for name in store.names}
    if others:
        return " (image files)"
    return f" ({first[1:].upper()} files)" if first else ""


PARTS_ON_DISK = {
    "latents": "latents",
    "names_and_labels": "names and labels",
    "records": "splits, file sizes, checksums",
    "figures": "figures of each image",
    "model": "the model",
    "metadata": "metadata and other tables",
}
"""What each part of `DiskUse` is called in the table."""


def store_table(store: Store, use: DiskUse | None = None) -> Table:
    """Make the table of sizes for the terminal: each beside the store's, and below it what the store's are made of.

    `use` is what `disk_use` says of the store, if that was asked already.
    """
    use = use or disk_use(store)
    title = f"{store.path}: {count(len(store), 'image')}, {count(store.kept_dims, 'latent')} each"
    rich, images = Table(title=title, title_justify="left"), len(store)
    rich.add_column("")
    for heading in ("bytes", "bytes an image", "bits/dim", "times the store"):
        rich.add_column(heading, justify="right")
    parts = {f"  {PARTS_ON_DISK[name]}": size for name, size in use.parts().items() if size}
    for name, size in (store_sizes(store, use) | parts).items():
        bits, times = 8 * size / images / store.image_dims, f"{size / use.total:.{2 if name in parts else 1}f}"
        rich.add_row(name, f"{size:,.0f}", f"{size / images:,.1f}", f"{bits:.3f}", times)
    return rich


def worker_sentence(path: str, worker: Worker) -> str:
    """Say that a worker is done and others may not be."""
    return f"Worker {worker} is done; {path} appears when the last of its {worker.count} workers is."
