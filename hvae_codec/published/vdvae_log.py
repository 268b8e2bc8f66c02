"""Reads the hyper-parameters of a published VDVAE from its log, one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args, get_type_hints

from ..errors import ModelError
from .downloads import check_download
from .vdvae_hparams import VdvaeHparams

_LARGEST_LOG = 500_000_000  # bytes; a published one has a few million
_MOST_GPUS = 100_000
_LARGEST_NUMBER = 2.0**63


@dataclass(frozen=True)
class VdvaeLog:
    """What a log says of how its model was made."""

    hparams: VdvaeHparams
    gpus: int  # each had `hparams.n_batch` images of a batch


def read_vdvae_log(path: Path) -> VdvaeLog:
    """Read a published `-log.jsonl`; of several starts of the program, the last value of each hyper-parameter counts.

    Raises `ModelError` if it is missing, no such log, or lacks a hyper-parameter that decides the network or its
    training, or holds one that is no text or finite number.
    """
    check_download(path, "log")
    values = _last_values(path)
    if not values:
        raise ModelError(f"{path} has no line with a hyper-parameter; give the whole log, or --preset")
    kinds = get_type_hints(VdvaeHparams) | {"mpi_size": int}
    read = {name: _value(values, name, kind, path) for name, kind in kinds.items()}
    gpus = read.pop("mpi_size")
    if not 1 <= gpus <= _MOST_GPUS:
        raise ModelError(f"{path}: mpi_size is {gpus}; it must be the number of GPUs, 1 at least")
    return VdvaeLog(VdvaeHparams(**read), gpus)


def _last_values(path: Path) -> dict[str, object]:
    if path.stat().st_size > _LARGEST_LOG:
        raise ModelError(f"{path} is too large for a log; is it the checkpoint?")
    values = {}
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            entry = _entry(line, number, path)
            if entry.get("type") == "hparam" and "key" in entry and "value" in entry:
                values[str(entry["key"])] = entry["value"]
    return values


def _entry(line: str, number: int, path: Path) -> Mapping[str, Any]:
    """Parse a line; empty lines are entries of nothing."""
    try:
        entry = json.loads(line) if line.strip() else {}
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict):
        raise ModelError(f"{path}: line {number} is no JSON object; give the published -log.jsonl, whole")
    return entry


def _value(values: Mapping[str, object], name: str, kind: Any, path: Path) -> Any:
    """Take a hyper-parameter as text, a whole number or a number, as `kind` says; whole numbers may have a point."""
    if name not in values:
        raise ModelError(f"{path} lacks the hyper-parameter {name}; give the whole log, or --preset")
    words, value = get_args(kind), cast(Any, values[name])
    if (words and value in words) or (kind is str and isinstance(value, str)):
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST_NUMBER
    if number and (kind is float or (kind is int and value == int(value))):
        return kind(value)
    wanted = {str: "a text", int: "a whole number", float: "a finite number"}.get(kind, f"one of {', '.join(words)}")
    raise ModelError(f"{path}: the hyper-parameter {name} is {value!r:.100}; it must be {wanted}")


def log_beside(checkpoint: Path) -> Path | None:
    """Find the log that was published beside a checkpoint, by its name; None if it is not there.

    >>> log_beside(Path("imagenet32-iter-1700000-model-ema.th"))
    """
    for ending in ("-model-ema.th", "-model.th"):
        if checkpoint.name.endswith(ending):
            log = checkpoint.with_name(checkpoint.name.removesuffix(ending) + "-log.jsonl")
            return log if log.is_file() else None
    return None
