"""Where other processes find a model, and how they know that it is the same one."""

from __future__ import annotations

import os
from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from ..errors import ModelError, UsageError
from .checkpoint import load_model, model_hash
from .device_choice import choose_device
from .hvae import HVAE
from .recorded import GraphMode, Recording


class ModelSource(Hashable, Protocol):
    """Where a process finds a model; picklable and small."""

    def load(self, device: str) -> HVAE:
        """Load it; raises `ModelError` or `StoreError` if there is none, or another one."""


@lru_cache(maxsize=1)
def model_here(source: ModelSource, device: str, graph: GraphMode) -> HVAE:
    """Load a model into a process that runs tasks, unless it is the last one that was loaded there.

    Raises what `ModelSource.load` and `choose_device` do.
    """
    model = source.load(choose_device(device))
    model.recording = Recording(graph)
    return model


@dataclass(frozen=True)
class ModelReference:
    """The model of a run that processes on other machines see at the same path; picklable and small."""

    run: Path  # its folder, absolute
    hash: str  # see `model_hash`

    @classmethod
    def of(cls, model: HVAE) -> ModelReference:
        """Refer to a model that `load_model` loaded; raises `UsageError` if it is of no run."""
        if model.run is None:
            raise UsageError("the model is of no run, from which other processes could load it; save it as one first")
        return cls(Path(os.path.abspath(model.run)), model_hash(model))

    def load(self, device: str) -> HVAE:
        """Load the model; raises `ModelError` if there is none, or if it is another one here."""
        model = load_model(self.run, device, kept=self.hash)
        if (own := model_hash(model)) != self.hash:
            raise ModelError(
                f"the model of {self.run} is {own[:12]} here, and {self.hash[:12]} where the work was begun; give all "
                "the same files"
            )
        return model
