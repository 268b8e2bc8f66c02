"""A model as tasks have it: the one at hand in the process that made them, in others that of its run, loaded once.

Weights do not travel: each process reads them where the run lies, and compares their hash.
"""

from __future__ import annotations

from typing import Any

from ..engine.taking_part import taking_part
from ..errors import UsageError
from .hvae import HVAE
from .recorded import GraphMode
from .reference import ModelReference, model_here


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
        self._reference, self._device, self._graph = reference, device, graph

    def get(self) -> HVAE:
        """Load the model, unless it is the last one that was loaded.

        Raises `ModelError` if its run is not to be seen from here or has other weights by now, `UsageError` if it has
        no run, or if there is no GPU for it.
        """
        if isinstance(self._reference, UsageError):
            raise self._reference
        with taking_part():
            return model_here(self._reference, self._device, self._graph)


def _reference(model: HVAE) -> ModelReference | UsageError:
    """Refer to a model; if that is not possible, the task is to say why: pickling may lose errors."""
    try:
        return ModelReference.of(model)
    except UsageError as error:
        return error
