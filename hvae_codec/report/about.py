"""What info says of a store or a run."""

from __future__ import annotations

from ..config import CONFIG_FILE
from ..errors import DataError
from ..storage.location import LocationLike, location_of
from ..store.group_file import find_copy
from ..store.reader import Store
from .encoded import store_sizes, store_table
from .facts import Facts


def describe(path: LocationLike) -> Facts:
    """Collect facts about the store or run at `path`; raises `DataError` if it is neither."""
    path = location_of(path)
    if path.folder is not None and (path.name == "latest" or (path / CONFIG_FILE).is_file()):
        from .about_run import describe_run  # with torch, which a store is described without

        return describe_run(path.folder)
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
