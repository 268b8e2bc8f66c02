"""Imports a published checkpoint, whatever its family: weights, configuration, and a record of where they are from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ..config import Config
from ..errors import UsageError
from ..model.checkpoint import save_model
from ..storage.new_folder import new_folder
from . import efficient_vdvae, vdvae
from .families import Family, read_checkpoint
from .record import ImportRecord, save_record, sha256_of


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What a checkpoint is imported with."""

    config: Path | None = None  # .cfg file of an Efficient-VDVAE
    log: Path | None = None  # -log.jsonl file of a VDVAE
    preset: str | None = None  # of a VDVAE, in place of its log
    weights: Literal["ema", "raw"] | None = None  # None: averaged ones, or those that a VDVAE's file has
    bins: Literal["exact", "published"] = "published"  # of the output distribution; they differ below 8 bits


@dataclass(frozen=True)
class Imported:
    """A run that is not written yet."""

    config: Config  # what the checkpoint is a model of
    weights: dict[str, Tensor]  # by this project's names, float32
    record: ImportRecord  # where the weights came from
    notes: tuple[str, ...] = ()  # what its user should know, one sentence each

    def save(self, run: Path) -> None:
        """Write the folder `run`, which appears when it is whole.

        Raises `DataError` if it exists and is not empty, or cannot be made.
        """
        run.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(run) as folder:
            save_record(folder, self.record)
            save_model(folder, self.config, self.weights)


def import_checkpoint(checkpoint: Path, options: ImportOptions) -> Imported:
    """Read a published checkpoint with what `options` give for its family.

    Raises `UsageError` if they lack something or are for another family, `ConfigError` on a configuration that cannot
    be imported, `ModelError` on a checkpoint or log that is missing, damaged, of another family, holds anything but
    tensors and plain data, or does not fit the configuration.
    """
    if options.log is not None and options.preset is not None:
        raise UsageError("--log and --preset both give hyper-parameters; leave one of them out")
    family, content = read_checkpoint(checkpoint)
    assert isinstance(content, Mapping)
    if family == "VDVAE":
        return _import_vdvae(content, checkpoint, options)
    return _import_efficient(content, checkpoint, options)


def _import_vdvae(content: Mapping[Any, object], checkpoint: Path, options: ImportOptions) -> Imported:
    if options.config is not None:
        raise UsageError(f"{checkpoint} is a VDVAE checkpoint, which has no .cfg file; give --log in place of --config")
    weights = "raw" if vdvae.is_raw(content) else "ema"
    if options.weights not in (None, weights):
        which, other = ("the raw", "-model-ema.th") if weights == "raw" else ("the averaged", "-model.th")
        raise UsageError(f"{checkpoint} has only {which} weights; leave out --weights, or give the file {other}")
    settings = vdvae.find_settings(checkpoint, options.log, options.preset, options.bins)
    tensors = vdvae.to_weights(content, checkpoint, settings)
    step = vdvae.step_of(checkpoint)
    record = _record("VDVAE", checkpoint, weights, step, settings.source)
    return Imported(_with_steps(settings.config, step), tensors, record, _notes(settings.config, settings.unused))


def _import_efficient(content: Mapping[Any, object], checkpoint: Path, options: ImportOptions) -> Imported:
    if options.config is None or options.log is not None or options.preset is not None:
        raise UsageError(
            f"{checkpoint} is an Efficient-VDVAE checkpoint; give its .cfg file with --config, and neither --log nor "
            "--preset"
        )
    which = options.weights or "ema"
    config, weights = efficient_vdvae.convert(content, checkpoint, options.config, which)
    config = replace(config, model=replace(config.model, bins=options.bins))
    step = content.get("global_step")
    step = step if isinstance(step, int) else None
    record = _record("Efficient-VDVAE", checkpoint, which, step, options.config.name)
    return Imported(config, weights, record, _notes(config))


def _with_steps(config: Config, steps: int | None) -> Config:
    """Say how long the model was trained, which shares of its training are shares of."""
    return replace(config, train=replace(config.train, steps=steps)) if steps else config


def _record(family: Family, checkpoint: Path, weights: str, step: int | None, source: str) -> ImportRecord:
    return ImportRecord(
        family=family,
        file=checkpoint.name,
        bytes=checkpoint.stat().st_size,
        sha256=sha256_of(checkpoint),
        weights=weights,
        step=step,
        hyperparameters=source,
    )


def _notes(config: Config, unused: Path | None = None) -> tuple[str, ...]:
    notes = []
    if unused is not None:
        notes.append(f"{unused.name}, which lies beside the checkpoint, was not read: --preset stands in its place.")
    if config.model.bins == "published" and config.model.bits < 8 and config.model.output == "logistic_mixture":
        notes.append(
            f"Bins are as published: at {config.model.bits} bits they overlap, so a NELBO compares with published "
            "ones only; --bins exact makes a distribution."
        )
    return tuple(notes)
