"""What tasks need and is too large to travel with each of them: made once in every process that runs tasks of a job."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable
from typing import Any, Generic, TypeVar

Made = TypeVar("Made")


class PerProcess(Generic[Made]):
    """A value, such as an open store and a model, that each process makes for itself.

    make: picklable; called by the first task in a process, and its errors are that task's
    here: makes the value in this process, if there is something at hand that cannot travel

    A process keeps the value of the last job alone.
    """

    def __init__(self, make: Callable[[], Made], here: Callable[[], Made] | None = None) -> None:
        self._make, self._here, self._key = make, here, uuid.uuid4().hex

    def get(self) -> Made:
        """Return the value, the same one as long as this process runs no task of another job."""
        return self._own if self._here is not None else _kept(self)

    @functools.cached_property
    def _own(self) -> Made:
        assert self._here is not None
        return self._here()

    def make(self) -> Made:
        """Make the value anew."""
        return self._make()

    def __getstate__(self) -> dict[str, Any]:
        return {"_make": self._make, "_here": None, "_key": self._key}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PerProcess) and other._key == self._key

    def __hash__(self) -> int:
        return hash(self._key)


@functools.lru_cache(maxsize=1)
def _kept(value: PerProcess[Any]) -> Any:
    return value.make()
