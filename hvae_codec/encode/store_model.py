"""The model that a store carries whole, for processes that add to it or repair it."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import StoreError
from ..model.hvae import HVAE
from ..storage.location import Location
from .embedded_model import load_embedded
from .encoded_store import open_store


@dataclass(frozen=True)
class StoreModel:
    """The model in the store at `path`; picklable and small."""

    path: Location  # absolute, or a URL
    hash: str  # see `model_hash`

    def load(self, device: str) -> HVAE:
        """Load the model; raises `StoreError` if the store is not here, or carries another model by now."""
        store = open_store(self.path)
        model = load_embedded(store, device) if store.model_hash == self.hash else None
        if model is None:
            raise StoreError(f"{self.path} does not carry the model {self.hash[:12]}; give all workers the same store")
        return model
