"""The folder of a run: decides whether a command begins one, continues it, or must leave it alone."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import CONFIG_FILE, Config
from ..data.preprocessing import Preprocessing
from ..data.sources import ImageSource
from ..data.training_and_held_out import TrainingAndHeldOut
from ..errors import DataError, ModelError
from ..model.checkpoint import WEIGHTS_FILE, load_run_config, save_config
from ..model.precision import resolve_precision
from ..storage.files import write_atomically
from ..storage.locks import ProcessLock, remove_empty
from .state import has_state, steps_taken

ORIGIN_FILE = "origin.json"
LOCK_FILE = ".lock"

_FIXED = ("model.", "optimizer.name", "train.batch_size", "pruning.")
"""Keys of the configuration that states depend on: the shapes of their tensors, and which images a step sees."""

_MEMORY = ("train.accumulate", "train.checkpoint_activations")
"""Keys that decide how much memory a step takes, and change its numbers to rounding alone."""

_BEGUN = {LOCK_FILE, ORIGIN_FILE} | {
    name for file in (CONFIG_FILE, ORIGIN_FILE) for name in (f"{file}.partial", f".{file}.lock")
}
"""Files that a command that was killed at its very beginning may leave."""


class RunLock:
    """One training at a time in the folder of a run, from `acquire` to `release` or the end of the process."""

    def __init__(self, run: Path) -> None:
        self._run, self._lock = run, ProcessLock(run / LOCK_FILE)
        self._missing = [folder for folder in (run, *run.parents) if not folder.exists()]

    def acquire(self) -> None:
        """Raise `ModelError` if another process trains this run; its folder is created."""
        if not self._lock.acquire():
            raise ModelError(f"{self._run} is being trained by another process; wait for it or stop it")

    def release(self) -> None:
        """Let others have it; folders that were made for a run that was not begun go, if nothing else is in them."""
        if (self._run / CONFIG_FILE).exists():
            self._lock.release()
        else:
            self._lock.remove()
            for folder in self._missing:
                remove_empty(folder)


@dataclass(frozen=True)
class Origin:
    """The seed and the images that a run is made from, and what is done to these."""

    seed: int
    training: str  # fingerprint of the training images
    validation: str  # fingerprint of the held-out images
    preprocessing: Mapping[str, Any] = field(default_factory=dict)  # options of `Preprocessing`, but for defaults

    @classmethod
    def of(cls, seed: int, training: ImageSource, validation: ImageSource) -> Origin:
        """Describe a run on these images."""
        return cls(seed, training.fingerprint, validation.fingerprint, training.preprocessing.to_dict())

    def has_images_of(self, other: Origin) -> bool:
        """Whether both are made from the same images."""
        return (self.training, self.validation) == (other.training, other.validation)

    @classmethod
    def before_skipping(cls, seed: int, training: ImageSource, validation: ImageSource) -> Origin | None:
        """Describe a run on the images before unusable ones were left out of them; None if none were."""
        if not training.skipped and not validation.skipped:
            return None
        other = None if validation.container is training.container else validation.before_skipping
        whole = TrainingAndHeldOut(training.before_skipping, other)
        return cls.of(seed, whole.training, whole.held_out)


def start_run(run: Path, config: Config, *, resume: bool, seed: int | None = None, device: str = "cpu") -> Config:
    """Check that `run` is free for a new run, or is one to continue; returns the configuration to train.

    Writes nothing: `train` does, once nothing else stands in the way. Without `resume`, an existing run is continued if
    its configuration is `config` (and its seed `seed`, if given): the same command again. With `resume`, its length,
    learning rate, loss schedule and the like may be others; what its states depend on may not. Precision `auto` becomes
    what suits `device`, or stays what it became. Raises `ModelError` if `run` is not a run, is one of something else,
    has more steps already, or is to be resumed and does not exist.
    """
    saved = load_run_config(run) if (run / CONFIG_FILE).is_file() else None
    config = _with_precision(run, saved, config, device)
    if saved is None:
        _check_new(run, resume)
    else:
        _check_existing(run, saved, config, seed, resume)
    return config


def _with_precision(run: Path, saved: Config | None, config: Config, device: str) -> Config:
    """Decide what precision `auto` is; an existing run keeps its own, float32 if it began before there was a choice."""
    precision = config.train.precision
    if precision == "auto" and saved is not None:
        old = saved.train.precision == "auto" and has_state(run)
        precision = "fp32" if old else saved.train.precision
    train = dataclasses.replace(config.train, precision=resolve_precision(precision, device))
    return dataclasses.replace(config, train=train)


def _check_new(run: Path, resume: bool) -> None:
    if resume:
        raise ModelError(f"there is no run at {run} to resume; leave out --resume to start it")
    check_free(run)


def check_free(run: Path, beside: Collection[str] = ()) -> None:
    """Raise `ModelError` if `run` is neither a run nor free for one; names `beside` those of a run may be there."""
    if run.exists() and not run.is_dir():
        raise ModelError(f"{run} exists and is a file; give another --out")
    is_run = (run / CONFIG_FILE).is_file()
    if run.exists() and not is_run and any(path.name not in {*_BEGUN, *beside} for path in run.iterdir()):
        raise ModelError(f"{run} exists and is not a run; give another --out")


def check_same(run: Path, wanted: Config, seed: int) -> None:
    """Raise `ModelError` if `run` was begun with another configuration or seed; a new run was with none.

    How much memory a step takes may change: a run may continue on a smaller GPU.
    """
    if not (run / CONFIG_FILE).is_file():
        return
    origin, saved = read_origin(run), load_run_config(run)
    if origin is not None and origin.seed != seed:
        raise ModelError(f"{run} was begun with seed {origin.seed}, not {seed}; give that as --seed, or another --out")
    old, new = _flat(dataclasses.asdict(saved)), _flat(dataclasses.asdict(wanted))
    for name in sorted(old | new, key=lambda name: name.startswith("optimizer.")):  # its rates follow from the steps
        if name not in _MEMORY and old.get(name) != new.get(name):
            raise ModelError(
                f"{run} was begun with {name} = {old.get(name)}, not {new.get(name)}; give what it was begun with, or "
                "another --out"
            )


def _check_existing(run: Path, saved: Config, wanted: Config, seed: int | None, resume: bool) -> None:
    if (run / WEIGHTS_FILE).exists() and not has_state(run):
        raise ModelError(f"{run} holds a model without a training state, so it cannot go on; give another --out")
    steps = steps_taken(run) or 0
    if steps > wanted.train.steps:
        raise ModelError(
            f"{run} has {steps} steps, more than train.steps = {wanted.train.steps}; give --steps above {steps}, or "
            "another --out"
        )
    _check_unchanged(run, saved, wanted, resume)
    origin = read_origin(run)
    if seed is not None and origin is not None and origin.seed != seed:
        raise ModelError(f"{run} was begun with seed {origin.seed}, not {seed}; leave out --seed or give another --out")


def _check_unchanged(run: Path, saved: Config, wanted: Config, resume: bool) -> None:
    old, new = _flat(dataclasses.asdict(saved)), _flat(dataclasses.asdict(wanted))
    for name in old | new:
        before, now = old.get(name), new.get(name)
        if before == now or (name == "train.precision" and before == "auto"):  # written before it was resolved
            continue
        if name.startswith(_FIXED):
            raise ModelError(f"{run} was begun with {name} = {before}, not {now}; give another --out")
        if not resume:
            option = f"{name}={'none' if now is None else now}"
            option = f"--steps {now}" if name == "train.steps" else f"--set {shlex.quote(option)}"
            raise ModelError(
                f"{run} was begun with {name} = {before}, not {now}; to go on with it changed give --resume "
                f"{option}, otherwise another --out"
            )


def _flat(value: Any, name: str = "") -> dict[str, object]:
    """Give all values in mappings and tuples their dotted names; the length of a tuple comes before its values."""
    if not isinstance(value, Mapping | tuple):
        return {name: value}
    found: dict[str, object] = {f"{name} (number)": len(value)} if isinstance(value, tuple) else {}
    for key, part in enumerate(value) if isinstance(value, tuple) else value.items():
        found |= _flat(part, f"{name}.{key}" if name else str(key))
    return found


def unfinished_sentence(run: Path) -> str:
    """Say that training stopped before its last step; empty if it did not, or if the run was imported."""
    taken, steps = steps_taken(run), load_run_config(run).train.steps
    if taken is None or taken >= steps:
        return ""
    return f"{run} has {taken:,} of {steps:,} steps; its weights change if its training goes on"


def trained_on_sentence(run: Path, images: TrainingAndHeldOut) -> str:
    """Say that what a hash of names would hold out was trained on; empty if it was not, or if that is not known.

    So it is if the run was begun with held-out images of their own: then it was trained on all of the others.
    """
    origin, data = read_origin(run), images.data
    if origin is None or images.val is not None or data.splits.folders or not data.splits.is_held_out:
        return ""
    if origin.training != data.fingerprint:
        return ""
    return (
        f"{run} was trained on all images in {data.container.path}, so none of them is held out; give those that it "
        "was begun with as --val or, to evaluate, as DATA with --split all"
    )


def read_origin(run: Path) -> Origin | None:
    """Read what the run was begun with; None before its first step."""
    path = run / ORIGIN_FILE
    if not path.exists():
        return None
    try:
        return Origin(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ModelError(f"cannot read {path} ({error}); copy it from a backup, or give another --out") from None


def begun_preprocessing(run: Path) -> Preprocessing | None:
    """Read what is done to the images of a run; None if the run does not say: it is new, or was imported.

    Raises `DataError` if there are options that are not known here.
    """
    origin = read_origin(run) if (run / CONFIG_FILE).is_file() else None
    return Preprocessing.from_dict(origin.preprocessing, str(run)) if origin else None


def check_begun_with(run: Path, images: ImageSource) -> None:
    """Raise `DataError` if `images` were opened with other preprocessing than those of `run`, if it says which."""
    begun = begun_preprocessing(run)
    if begun is not None:
        begun.check_same(images.preprocessing, f"{run} was begun with")


def origin_of_run(
    run: Path,
    training: ImageSource,
    validation: ImageSource,
    *,
    seed: int,
    other_data: bool,
    opened: tuple[bool, bool] = (True, True),
) -> Origin:
    """Return what `run` is made from, if it is trained on these images.

    `opened`: whether each of the two was opened, so that something may be done to it; an array in memory is as it is.
    Raises `DataError` as `check_begun_with` and `check_origin` do.
    """
    for images in itertools.compress((training, validation), opened):
        check_begun_with(run, images)
    unskipped = Origin.before_skipping(seed, training, validation)
    return check_origin(run, Origin.of(seed, training, validation), other_data=other_data, unskipped=unskipped)


def check_origin(run: Path, origin: Origin, *, other_data: bool, unskipped: Origin | None = None) -> Origin:
    """Return what a new run is made from; of an older one, check the images and take its seed.

    The older one may have been begun `unskipped`: with images that are left out now, which it could not read either.

    Raises `DataError` if it was begun on other images or with other preprocessing, unless `other_data` allows that.
    """
    saved = read_origin(run)
    if saved is None or not (run / CONFIG_FILE).is_file():  # a kill between the two left no run
        return origin
    if unskipped and saved.has_images_of(unskipped):
        return dataclasses.replace(saved, preprocessing=origin.preprocessing)
    origin = dataclasses.replace(origin, seed=saved.seed)
    if not saved.has_images_of(origin) and not other_data and steps_taken(run):
        begun, now = (Preprocessing.from_dict(each.preprocessing, str(run)) for each in (saved, origin))
        begun.check_same(now, f"{run} was begun with")
        which = "training" if saved.training != origin.training else "held-out"
        raise DataError(
            f"the {which} images are not those that {run} was begun with (their names, sizes or number changed); give "
            "those, or --allow-other-data to go on with these"
        )
    return origin


def save_run(run: Path, config: Config, origin: Origin) -> None:
    """Write down what the states of `run` are from now on trained with."""
    if origin != read_origin(run):
        run.mkdir(parents=True, exist_ok=True)
        described = {name: value for name, value in dataclasses.asdict(origin).items() if value != {}}
        write_atomically(run / ORIGIN_FILE, json.dumps(described, indent=2).encode() + b"\n")
    save_config(run, config)
