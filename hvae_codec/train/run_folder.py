"""The folder of a run: decides whether a command begins one, continues it, or must leave it alone."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import CONFIG_FILE, Config, TrainConfig, config_to_dict
from ..data.sources import ImageSource
from ..errors import DataError, ModelError
from ..model.checkpoint import WEIGHTS_FILE, load_run_config, save_config
from ..model.precision import resolve_precision
from ..storage.files import write_atomically
from .run_lock import LOCK_FILE, RunLock
from .state import has_state

ORIGIN_FILE = "origin.json"

_FIXED = ("model.", "optimizer.name", "train.batch_size")
"""Keys of the configuration that states depend on: the shapes of their tensors, and which images a step sees."""

_BEGUN = {LOCK_FILE, f"{CONFIG_FILE}.partial"}
"""Files that a command that was killed at its very beginning may leave."""


@dataclass(frozen=True)
class Origin:
    """The seed and the images that a run is made from."""

    seed: int
    training: str
    """Fingerprint of the training images."""
    validation: str
    """Fingerprint of the held-out images."""

    @classmethod
    def of(cls, seed: int, training: ImageSource, validation: ImageSource) -> Origin:
        """Make that of a run on these images."""
        return cls(seed, training.fingerprint, validation.fingerprint)


def start_run(run: Path, config: Config, *, resume: bool, seed: int | None = None, device: str = "cpu") -> Config:
    """Create the folder of a run, or check the one to continue; returns the configuration to train.

    Without `resume`, an existing run is continued if its configuration is `config` (and its seed `seed`, if given):
    the same command again. With `resume`, its length, learning rate, loss schedule and the like may be
    others; what its states depend on may not. Precision `auto` becomes what suits `device`, or stays what it became.
    Raises `ModelError` if `run` is not a run, is one of something else, or is to be resumed and does not exist.
    """
    exists = (run / CONFIG_FILE).is_file()
    if resume and not exists:
        raise ModelError(f"there is no run at {run} to resume; leave out --resume to start it")
    if not exists:
        _check_empty(run)
        config = _with_precision(config, resolve_precision(config.train.precision, device))
    else:
        saved = load_run_config(run)
        if (run / WEIGHTS_FILE).exists() and not has_state(run):
            raise ModelError(f"{run} holds a model without a training state, so it cannot go on; give another --out")
        if config.train.precision == "auto":
            config = _with_precision(config, _precision_of(saved, run, device))
        _check_unchanged(run, saved, config, resume)
        _check_seed(run, seed)
    _save_config(run, config)
    return config


def _save_config(run: Path, config: Config) -> None:
    """Write the configuration, unless another process trains this run."""
    run.mkdir(parents=True, exist_ok=True)
    lock = RunLock(run)
    lock.acquire()
    try:
        save_config(run, config)
    finally:
        lock.release()


def _check_empty(run: Path) -> None:
    if run.exists() and not run.is_dir():
        raise ModelError(f"{run} exists and is a file; give another --out")
    if run.exists() and any(path.name not in _BEGUN for path in run.iterdir()):
        raise ModelError(f"{run} exists and is not a run; give another --out")


def _precision_of(saved: Config, run: Path, device: str) -> str:
    """Find what `auto` became in an existing run; one from before there was a choice computed in float32."""
    if saved.train.precision == "auto" and has_state(run):
        return "fp32"
    return resolve_precision(saved.train.precision, device)


def _with_precision(config: Config, precision: Any) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, precision=precision))


def _check_unchanged(run: Path, saved: Config, wanted: Config, resume: bool) -> None:
    for name, before, now in _differences(config_to_dict(saved), config_to_dict(wanted)):
        if name == "train.precision" and before == TrainConfig.precision:
            continue  # a configuration that was written before it was resolved
        if name.startswith(_FIXED):
            raise ModelError(f"{run} was begun with {name} = {before}, not {now}; give another --out")
        if not resume:
            raise ModelError(
                f"{run} was begun with {name} = {before}, not {now}; to go on with it changed give --resume "
                f"{_option(name, now)}, otherwise another --out"
            )


def _option(name: str, value: object) -> str:
    """Write the option that gives a resumed run this value."""
    if name == "train.steps":
        return f"--steps {value}"
    return "--set " + shlex.quote(f"{name}={'none' if value is None else value}")


def _differences(saved: Any, wanted: Any, where: str = "") -> Iterator[tuple[str, object, object]]:
    """Yield dotted name and both values of what differs in two configurations as plain data."""
    if isinstance(saved, list) and isinstance(wanted, list) and len(saved) == len(wanted):
        saved, wanted = dict(enumerate(saved)), dict(enumerate(wanted))
    if isinstance(saved, Mapping) and isinstance(wanted, Mapping):
        for key in saved:
            yield from _differences(saved[key], wanted.get(key), f"{where}.{key}" if where else str(key))
    elif isinstance(saved, list) and isinstance(wanted, list):
        yield f"{where} (number)", len(saved), len(wanted)
    elif saved != wanted:
        yield where, saved, wanted


def _check_seed(run: Path, seed: int | None) -> None:
    origin = read_origin(run)
    if seed is not None and origin is not None and origin.seed != seed:
        raise ModelError(f"{run} was begun with seed {origin.seed}, not {seed}; leave out --seed or give another --out")


def read_origin(run: Path) -> Origin | None:
    """Read what the run was begun with; None before its first step."""
    path = run / ORIGIN_FILE
    if not path.exists():
        return None
    try:
        return Origin(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ModelError(f"cannot read {path} ({error}); copy it from a backup, or give another --out") from None


def save_origin(run: Path, origin: Origin, *, other_data: bool) -> Origin:
    """Save what a new run is made from; of an older one, check the images and take its seed.

    Raises `DataError` if it was begun on other images, unless `other_data` allows that.
    """
    saved = read_origin(run)
    if saved is not None:
        origin = dataclasses.replace(origin, seed=saved.seed)
    if saved is not None and saved != origin and not other_data:
        which = "training" if saved.training != origin.training else "held-out"
        raise DataError(
            f"the {which} images are not those that {run} was begun with (their names, sizes or number changed); give "
            "those, or --allow-other-data to go on with these"
        )
    if saved != origin:
        write_atomically(run / ORIGIN_FILE, json.dumps(dataclasses.asdict(origin), indent=2).encode() + b"\n")
    return origin
