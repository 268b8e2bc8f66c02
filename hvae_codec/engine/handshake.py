"""What a worker of a cluster is asked before its first task: who are you, and can you do this work?"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..errors import EngineError

Check = Callable[[], str | None]
"""Picklable; called in a worker, returns what is wrong there, or None."""


@dataclass(frozen=True)
class Introduction:
    """What a worker says of itself."""

    package: str
    python: str
    problem: str | None = None


def introduce(check: Check | None = None) -> Introduction:
    """Say which versions this process has, and what is wrong here by `check`."""
    problem = None if check is None else check()
    return Introduction(package_version(), "{}.{}".format(*sys.version_info), problem)


def package_version() -> str:
    """Return the version of this package that is installed, `unknown` if none is."""
    try:
        return importlib.metadata.version("hvae-codec")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def check_introductions(introductions: Mapping[str, Introduction | BaseException]) -> None:
    """Compare workers, by name, with this process; raises `EngineError` that names the first one that differs."""
    own = introduce()
    for who, said in introductions.items():
        if isinstance(said, ModuleNotFoundError) and (said.name or "").startswith("hvae_codec"):
            raise EngineError(f"{who} has no package hvae-codec; install version {own.package} there")
        if isinstance(said, BaseException):
            raise EngineError(f"{who} cannot take part: {type(said).__name__}: {said}")
        if said.package != own.package:
            advice = f"this process {own.package}; install the same in both"
            raise EngineError(f"{who} has version {said.package} of hvae-codec, {advice}")
        if said.python != own.python:
            advice = f"this process {own.python}; use the same for both"
            raise EngineError(f"{who} has Python {said.python}, {advice}")
        if said.problem is not None:
            raise EngineError(f"{who} cannot take part: {said.problem}")
