"""Tables of a damaged store made anew: names and labels of the images, steps of the ranking, a carried model.

What is put in is proven by the store's fingerprint, a model by its hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..data.sources import ImageSource
from ..errors import HvaeCodecError, StoreError
from ..model.checkpoint import model_hash
from ..model.hvae import HVAE
from ..prune.kl_stats import KLStats
from ..prune.mask import LatentMask
from ..store.inspection import Inspection
from ..store.metadata import COPY_HOLDER
from ..store.reader import Store
from ..store.repair_metadata import may_copy, write_tables
from ..store.schema import WEIGHTS
from ..store.spec import StoreSpec, spec_fingerprint, spec_of
from .coder import quantiser_steps, stored_columns
from .embedded_model import model_weights


@dataclass(frozen=True)
class TableSources:
    """What damaged tables are made from, as far as it was given."""

    images: ImageSource | None = None
    """Those that were encoded: names and labels."""
    model: HVAE | None = None
    """That of the store."""
    stats: KLStats | None = None
    """The ranking that the steps are from."""


def repair_tables(inspection: Inspection, sources: TableSources) -> list[str]:
    """Replace what is damaged besides latents and digests; returns the files.

    Raises `StoreError` if the store's fingerprint or the model's hash does not prove what would be put in, or if what
    it would be made from is not given; nothing is replaced then.
    """
    store = inspection.store
    damaged = {damage.file.split("/")[0] for damage in inspection.damages if damage.row_group is None}
    wanted = sorted(damaged & store.arrays.schema.keys())
    if not may_copy(inspection):
        wanted = [name for name in wanted if name != COPY_HOLDER]
    if not wanted:
        return []
    spec = _proven_spec(store, wanted, sources)
    if WEIGHTS in wanted:
        spec = replace(spec, weights=_proven_weights(store, sources.model))
    return write_tables(store, spec, wanted)


def _proven_weights(store: Store, model: HVAE | None) -> bytes:
    remedy = "give the run it was made with as --model"
    if model is None:
        raise StoreError(f"{store.path} carries a model that is damaged; {remedy}")
    if model_hash(model) != store.model_hash:
        raise StoreError(f"{store.path} carries another model than this one; {remedy}")
    return model_weights(model)


def _proven_spec(store: Store, damaged: Sequence[str], sources: TableSources) -> StoreSpec:
    shown = ", ".join(damaged)
    try:
        mask = LatentMask.from_dict(store.mask)
        spec = spec_of(
            store.metadata,
            names=_texts(store, "name", damaged, sources),
            labels=_texts(store, "label", damaged, sources),
            columns=stored_columns(mask),
            steps=_steps(store, damaged, mask, sources.stats),
            per_image=store.own_figures,
        )
    except (LookupError, TypeError, ValueError, HvaeCodecError) as error:
        raise StoreError(f"{shown} cannot be made anew ({error}); restore them from a copy") from None
    if spec_fingerprint(spec) != store.metadata.fingerprint:
        raise StoreError(
            f"{shown} cannot be made anew: these are not the images, in their order, or not the ranking that the store "
            "was made with; give those, or restore the files from a copy"
        )
    return spec


def _texts(store: Store, name: str, damaged: Sequence[str], sources: TableSources) -> Sequence[str]:
    if name not in damaged:
        return store.names if name == "name" else store.labels
    if sources.images is None:
        raise StoreError("that takes the images that were encoded, which were not given")
    return sources.images.names if name == "name" else sources.images.labels


def _steps(
    store: Store, damaged: Sequence[str], mask: LatentMask, stats: KLStats | None
) -> dict[int, NDArray[np.float32]]:
    whole = {r: store.arrays.read(f"step{r}") for r in store.resolutions if f"step{r}" not in damaged}
    if len(whole) == len(store.resolutions):
        return whole
    if stats is None:
        raise StoreError("its steps need the ranking that the store was made with")
    return {**quantiser_steps(mask, store.codec, stats), **whole}
