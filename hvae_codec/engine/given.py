"""Which engine a function uses whose caller may give one, or an executor, or neither."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager

from ..errors import UsageError
from .engine import Engine, Here
from .executor_engine import ExecutorEngine

Executors = Executor | Callable[[], Executor]
"""An executor, or a function that makes one, also in place of one that broke."""


@contextmanager
def given_engine(engine: Engine | None, executor: Executors | None) -> Iterator[Engine]:
    """Give the engine, one on the executor, or this process if there is neither. Raises `UsageError` if there are both.

    An executor stays open; one that a function made is shut down.
    """
    if engine is not None and executor is not None:
        raise UsageError("both an engine and an executor are given; leave one of them out")
    if executor is None:
        yield engine or Here()
        return
    # Of others nobody knows whether they send tasks elsewhere by themselves.
    is_plain = isinstance(executor, ThreadPoolExecutor | ProcessPoolExecutor)
    with ExecutorEngine(executor, may_repeat=not is_plain) as made:
        yield made
