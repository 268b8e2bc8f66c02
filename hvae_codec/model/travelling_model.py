"""A model as tasks have it: the one at hand in the process that made them, in others that of its run, loaded once.

Weights do not travel: each process reads them where the run lies, and compares their hash.
"""

from __future__ import annotations

import socket
from functools import lru_cache
from typing import Any

import torch

from ..errors import EngineError, HvaeCodecError, UsageError
from .hvae import HVAE
from .recorded import GraphMode, Recording
from .reference import ModelReference


class TravellingModel:
    """A model that can be pickled: what arrives is a reference to it, and loads when it is asked for.

    device: kind of device that other processes have it on, cpu or cuda; that of the model if not given
    """

    def __init__(self, model: HVAE, device: str | None = None) -> None:
        self._model = model
        self._device = device or model.device.type

    def get(self) -> HVAE:
        """Return the model."""
        return self._model

    def __reduce__(self) -> tuple[Any, ...]:
        return ReferredModel, (_reference(self._model), self._device, self._model.recording.wanted)


class ReferredModel:
    """A model in another process than the one that has it at hand."""

    def __init__(self, reference: ModelReference | UsageError, device: str, graph: GraphMode) -> None:
        self._what = reference, device, graph

    def get(self) -> HVAE:
        """Load the model, unless it is the last one that was loaded.

        Raises `ModelError` if its run is not to be seen from here or has other weights by now, `UsageError` if it has
        no run, or if there is no GPU for it.
        """
        return _loaded(*self._what)


def _reference(model: HVAE) -> ModelReference | UsageError:
    """Refer to a model; if that is not possible, the task is to say why: pickling may lose errors."""
    try:
        return ModelReference.of(model)
    except UsageError as error:
        return error


@lru_cache(maxsize=1)
def _loaded(reference: ModelReference | UsageError, device: str, graph: GraphMode) -> HVAE:
    if isinstance(reference, UsageError):
        raise reference
    host = socket.gethostname()
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"the worker on {host} cannot take part: torch finds no GPU there; give --device cpu")
    try:
        model = reference.load(device)
    except HvaeCodecError as error:
        raise type(error)(f"the worker on {host} cannot take part: {error}") from None
    except OSError as error:  # not of one part's images: those of all would fail
        raise EngineError(f"the worker on {host} cannot take part: {error}") from None
    model.recording = Recording(graph)
    return model
