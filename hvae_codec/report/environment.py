"""What an installation has to work with: versions, processors, memory, disk, and which optional parts are missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from packaging.requirements import Requirement
from PIL import features
from rich.table import Table

from .counts import count
from .facts import Facts

DISTRIBUTION = "hvae-codec"
EXTRAS = {
    "remote": "stores and images in a bucket (s3://, gs://)",
    "parquet": "images in Parquet files",
    "jxl": "images in .jxl files",
    "dask": "work on a Dask cluster",
}
"""What each extra of the package is for."""


@dataclass(frozen=True)
class Package:
    """A package that is needed, or that an extra brings."""

    name: str
    needed: str  # versions that would do, such as `>=3.1`
    version: str | None  # installed; None if it is not
    fits: bool  # whether the installed version would do


@dataclass(frozen=True)
class OptionalPart:
    """A part that works only if something more is installed."""

    name: str
    purpose: str
    missing: str  # what is missing; empty if nothing is
    remedy: str  # what to do about it


def environment(folder: Path) -> Facts:
    """Collect what this installation has to work with; results would be written into `folder`."""
    packages, optional = list(_packages()), list(_optional())
    data = {
        "kind": "environment",
        "version": importlib.metadata.version(DISTRIBUTION),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {package.name: package.version for package in packages},
        "faults": [_fault(package) for package in packages if not package.fits],
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory": {"total": psutil.virtual_memory().total, "available": psutil.virtual_memory().available},
        "disk": {"folder": str(folder.resolve()), "free": shutil.disk_usage(folder).free},
        "gpus": _gpus(),
        "cuda": torch.version.cuda,
        "optional": [asdict(part) for part in optional],
    }
    return Facts(Path(DISTRIBUTION), data, _pairs(data), (_optional_table(optional),))


def _packages(extra: str = "") -> Iterator[Package]:
    """What the package needs, or what one of its extras brings."""
    for text in importlib.metadata.requires(DISTRIBUTION) or ():
        requirement = Requirement(text)
        if requirement.marker.evaluate({"extra": extra}) if requirement.marker else not extra:
            version = _version(requirement.name)
            fits = version is not None and requirement.specifier.contains(version, prereleases=True)
            yield Package(requirement.name, str(requirement.specifier), version, fits)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _fault(package: Package) -> str:
    found = f"{package.version} is installed" if package.version else "it is not installed"
    return f"{package.name}{package.needed} is needed, and {found}; pip install '{package.name}{package.needed}'"


def _optional() -> Iterator[OptionalPart]:
    for extra, purpose in EXTRAS.items():
        missing = ", ".join(package.name for package in _packages(extra) if not package.fits)
        yield OptionalPart(extra, purpose, missing, f"pip install '{DISTRIBUTION}[{extra}]'" if missing else "")
    kernel = "" if importlib.util.find_spec("hvae_codec.archive._kernel") else "the compiled coder"
    remedy = "install a C compiler, then install hvae-codec again" if kernel else ""
    yield OptionalPart("archive", "stores packed by the archive codec", kernel, remedy)
    for name, suffix in (("webp", ".webp"), ("avif", ".avif")):
        lost = "" if features.check(name) else f"Pillow's {name}"
        yield OptionalPart(name, f"images in {suffix} files", lost, "pip install --upgrade pillow" if lost else "")
    if torch.cuda.is_available():
        yield _compiled_formulas()


def _compiled_formulas() -> OptionalPart:
    """What training on a GPU is a fifth faster with."""
    needs = {"triton": importlib.util.find_spec("triton"), "a C compiler": shutil.which("cc") or shutil.which("gcc")}
    missing = ", ".join(name for name, found in needs.items() if not found)
    return OptionalPart("compile", "formulas compiled for the GPU", missing, f"install {missing}" if missing else "")


def _gpus() -> list[dict[str, Any]]:
    """Name and memory in bytes of each GPU that torch can use."""
    if not torch.cuda.is_available():
        return []
    devices = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [{"name": device.name, "memory": device.total_memory} for device in devices]


def _pairs(data: Mapping[str, Any]) -> dict[str, str]:
    gpus = ", ".join(f"{gpu['name']} ({_gib(gpu['memory'])})" for gpu in data["gpus"])
    build = f"torch is built for CUDA {data['cuda']}" if data["cuda"] else "torch is built for the CPU alone"
    return {
        "version": f"{data['version']}, Python {data['python']}, {data['platform']}",
        "GPUs": gpus or f"none that torch can use; {build}",
        "processors": f"{data['processors']}, torch computes in {count(data['threads'], 'thread')}",
        "memory": f"{_gib(data['memory']['available'])} of {_gib(data['memory']['total'])} available",
        "disk": f"{_gib(data['disk']['free'])} free in {data['disk']['folder']}",
        "packages": ", ".join(f"{name} {version}" for name, version in data["packages"].items()),
        **({"to mend": "\n".join(data["faults"])} if data["faults"] else {}),
    }


def _gib(number: int) -> str:
    """Write bytes.

    >>> _gib(3 * 2**29)
    '1.5 GiB'
    """
    return f"{number / 2**30:,.1f} GiB"


def _optional_table(parts: list[OptionalPart]) -> Table:
    table = Table("part", "for", "missing", "to have it", title="Optional", title_justify="left")
    for part in parts:
        table.add_row(part.name, part.purpose, part.missing or "nothing", part.remedy)
    return table
