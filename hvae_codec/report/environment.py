"""What an installation has to work with: versions, processors, memory, disk, and which optional parts are missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.table import Table

from .counts import count
from .facts import Facts
from .installed import DISTRIBUTION, Package, imported, packages

EXTRAS = {
    "remote": "stores and images in a bucket (s3://, gs://)",
    "parquet": "images in Parquet files",
    "jxl": "images in .jxl files",
    "dask": "work on a Dask cluster",
}
"""What each extra of the package is for."""


@dataclass(frozen=True)
class OptionalPart:
    """A part that works only if something more is installed."""

    name: str
    purpose: str
    missing: str  # what is missing; empty if nothing is
    remedy: str  # what to do about it


def environment(folder: Path) -> Facts:
    """Collect what this installation has to work with; results would be written into `folder`.

    What cannot be found out, as a package is missing or broken, is None; `faults` says what is.
    """
    needed, optional = list(packages()), list(_optional())
    torch, _ = imported("torch")
    data = {
        "kind": "environment",
        "version": importlib.metadata.version(DISTRIBUTION),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {package.name: package.version for package in needed},
        "faults": [package.fault for package in needed if package.fault],
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads() if torch else None,
        "memory": _memory(),
        "disk": {"folder": str(folder.resolve()), "free": shutil.disk_usage(folder).free},
        "gpus": _gpus(torch) if torch else None,
        "cuda": torch.version.cuda if torch else None,
        "optional": [asdict(part) for part in optional],
    }
    return Facts(Path(DISTRIBUTION), data, _pairs(data), (_optional_table(optional),))


def _optional() -> Iterator[OptionalPart]:
    for extra, purpose in EXTRAS.items():
        missing = ", ".join(_lack(package) for package in packages(extra) if package.fault)
        yield OptionalPart(extra, purpose, missing, f"pip install '{DISTRIBUTION}[{extra}]'" if missing else "")
    kernel = "" if imported("hvae_codec.archive._kernel")[0] else "the compiled coder"
    remedy = "install a C compiler, then install hvae-codec again" if kernel else ""
    yield OptionalPart("archive", "stores packed by the archive codec", kernel, remedy)
    features, _ = imported("PIL.features")
    for name, suffix in (("webp", ".webp"), ("avif", ".avif")):
        lost = "" if features and features.check(name) else f"Pillow's {name}"
        yield OptionalPart(name, f"images in {suffix} files", lost, "pip install --upgrade pillow" if lost else "")
    torch, _ = imported("torch")
    if torch and torch.cuda.is_available():
        yield _compiled_formulas()


def _lack(package: Package) -> str:
    return f"{package.name}, which cannot be imported" if package.fits else package.name


def _compiled_formulas() -> OptionalPart:
    """What training on a GPU is a fifth faster with."""
    needs = {"triton": imported("triton")[0], "a C compiler": shutil.which("cc") or shutil.which("gcc")}
    missing = ", ".join(name for name, found in needs.items() if not found)
    return OptionalPart("compile", "formulas compiled for the GPU", missing, f"install {missing}" if missing else "")


def _memory() -> dict[str, int] | None:
    """Bytes of this machine; None without psutil."""
    psutil, _ = imported("psutil")
    if psutil is None:
        return None
    memory = psutil.virtual_memory()
    return {"total": memory.total, "available": memory.available}


def _gpus(torch: ModuleType) -> list[dict[str, Any]]:
    """Name and memory in bytes of each GPU that torch can use."""
    if not torch.cuda.is_available():
        return []
    devices = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [{"name": device.name, "memory": device.total_memory} for device in devices]


def _pairs(data: Mapping[str, Any]) -> dict[str, str]:
    memory, threads = data["memory"], data["threads"]
    available = f"{_gib(memory['available'])} of {_gib(memory['total'])} available" if memory else _unknown("psutil")
    computes = f"torch computes in {count(threads, 'thread')}" if threads else "threads are " + _unknown("torch")
    return {
        "version": f"{data['version']}, Python {data['python']}, {data['platform']}",
        "GPUs": _unknown("torch") if data["gpus"] is None else _gpu_sentence(data["gpus"], data["cuda"]),
        "processors": f"{data['processors']}, {computes}",
        "memory": available,
        "disk": f"{_gib(data['disk']['free'])} free in {data['disk']['folder']}",
        "packages": ", ".join(f"{name} {version or 'missing'}" for name, version in data["packages"].items()),
        **({"to mend": "\n".join(data["faults"])} if data["faults"] else {}),
    }


def _unknown(package: str) -> str:
    return f"unknown without {package}"


def _gpu_sentence(gpus: list[dict[str, Any]], cuda: str | None) -> str:
    build = f"torch is built for CUDA {cuda}" if cuda else "torch is built for the CPU alone"
    named = ", ".join(f"{gpu['name']} ({_gib(gpu['memory'])})" for gpu in gpus)
    return named or f"none that torch can use; {build}"


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
