"""Packages that are needed, or that an extra brings: which version is there, whether it would do, and whether it works.

Needs nothing but Python's own library, as any package may be the one that is missing.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

DISTRIBUTION = "hvae-codec"
MODULES = {
    "pillow": "PIL",
    "pillow-jxl-plugin": "pillow_jxl",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
}
"""What is imported of packages whose module has another name."""


@dataclass(frozen=True)
class Package:
    """A package that is needed, or that an extra brings."""

    name: str
    needed: str  # versions that would do, such as `>=3.1`
    version: str | None  # installed; None if it is not
    fits: bool  # whether the installed version would do
    failure: str  # why it cannot be imported; empty if it can, or is not installed

    @property
    def fault(self) -> str:
        """Say what is wrong and how to mend it; empty if nothing is."""
        wanted = f"{self.name}{self.needed}"
        if not self.fits:
            found = f"{self.version} is installed" if self.version else "it is not installed"
            return f"{wanted} is needed, and {found}; pip install '{wanted}'"
        if self.failure:
            found = f"{self.version}, which is installed, cannot be imported ({self.failure})"
            return f"{wanted} is needed, and {found}; pip install --force-reinstall '{wanted}'"
        return ""


def packages(extra: str = "") -> Iterator[Package]:
    """Find what the package needs, or what one of its extras brings; each that is installed is imported."""
    for text in importlib.metadata.requires(DISTRIBUTION) or ():
        requirement = _read(text)
        if requirement.marker.evaluate({"extra": extra}) if requirement.marker else not extra:
            version = _version(requirement.name)
            fits = version is not None and requirement.specifier.contains(version, prereleases=True)
            failure = "" if version is None else imported(_module(requirement.name))[1]
            yield Package(requirement.name, str(requirement.specifier), version, fits, failure)


def imported(name: str) -> tuple[ModuleType | None, str]:
    """Import the module `name`; returns it, or None and why that failed, in one line."""
    try:
        return importlib.import_module(name), ""
    except Exception as error:  # a package that is broken may raise anything
        return None, " ".join(f"{type(error).__name__}: {error}".split())


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _module(package: str) -> str:
    return MODULES.get(package, package.replace("-", "_"))


def _read(requirement: str) -> Any:
    """Parse a requirement; without packaging, so far that its name, versions and extra are known."""
    packaging, _ = imported("packaging.requirements")
    return packaging.Requirement(requirement) if packaging else _Requirement(requirement)


class _Requirement:
    """Stands in for packaging's class: any version that is installed would do, as versions cannot be compared."""

    def __init__(self, text: str) -> None:
        what, _, marker = text.partition(";")
        self.name = re.split(r"[^\w.-]", what.strip(), maxsplit=1)[0]
        self.specifier = _AnyVersion(what.strip().removeprefix(self.name))
        self.marker = _Marker(marker) if marker else None


class _AnyVersion(str):
    def contains(self, version: str, prereleases: bool) -> bool:
        return True


class _Marker(str):
    def evaluate(self, environment: dict[str, str]) -> bool:
        return re.search(rf"extra == ['\"]{environment['extra']}['\"]", self) is not None
