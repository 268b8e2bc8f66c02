"""Export into the published layout: a `.cfg` file and a `torch.save` checkpoint, so that import gives the run again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..config import Config, ModelConfig
from ..errors import ModelError, UsageError
from .checkpoint import WEIGHTS_FILE, fill_model, find_run, load_run_config, load_weights
from .hvae import HVAE
from .published import import_published, published_names
from .published_config_text import changed_settings, published_config_text


@dataclass(frozen=True)
class Exported:
    """What was written, and what to know about it."""

    config_file: Path
    checkpoint: Path
    parameters: int
    notes: tuple[str, ...]
    """Sentences: what the published layout does not carry."""


def export_published(run: Path | str, out: Path) -> Exported:
    """Write `out`/hparams-RUN.cfg and `out`/checkpoints-RUN, with RUN the name of the run's folder.

    `ema_model_state_dict` holds the run's weights (model.safetensors); `model_state_dict` the unaveraged ones of its
    newest training state, or the same where it has none. The moments of the optimiser are not carried. What was written
    is imported again and compared before it gets its names.

    Raises `UsageError` where `out` holds something, `ConfigError` on a design that the layout cannot express,
    `ModelError` where the run is damaged or the checkpoint cannot be written.
    """
    folder = find_run(run)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists; give another --out")
    config, weights = load_run_config(folder), load_weights(folder / WEIGHTS_FILE)
    fill_model(HVAE(config.model), weights, folder / WEIGHTS_FILE)  # says what is missing or does not fit
    name = folder.resolve().name
    text = published_config_text(config, name)
    raw = _newest_raw_weights(folder, weights)
    checkpoint = published_checkpoint(config.model, weights, raw)
    written = _write(out, name, text, checkpoint)
    try:
        read = _check_import(*written, weights)
        files = [path.replace(path.with_name(path.name.removesuffix(".partial"))) for path in written]
    finally:
        _remove(out, written)
    notes = [*changed_settings(config, read), "the optimiser's moments are left out: training cannot go on from it"]
    if raw is None:
        notes.append("the run has no training state: model_state_dict holds its averaged weights too")
    return Exported(files[1], files[0], sum(tensor.numel() for tensor in weights.values()), tuple(notes))


@dataclass(frozen=True)
class RawWeights:
    """Weights as the optimiser left them, under this project's names."""

    tensors: dict[str, Tensor]
    step: int


def published_checkpoint(
    config: ModelConfig, ema: Mapping[str, Tensor], raw: RawWeights | None = None
) -> dict[str, Any]:
    """What `torch.save` writes of a published model; `raw` None repeats `ema`, and its step is 0."""
    names = published_names(config)
    states = {
        "model_state_dict": raw.tensors if raw else ema,
        "ema_model_state_dict": ema,
    }
    return {
        "global_step": raw.step if raw else 0,
        **{key: {names[name]: state[name] for name in names} for key, state in states.items()},
        "optimizer_state_dict": None,
        "scheduler_state_dict": None,
    }


def _newest_raw_weights(run: Path, like: Mapping[str, Tensor]) -> RawWeights | None:
    """`weights.NAME` in the newest training state that can be read."""
    for path in sorted(run.glob("state/step-*.safetensors"), reverse=True):
        try:
            step = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["step"]
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(f"weights.{name}") for name in like}
        except (SafetensorError, OSError, ValueError, LookupError, TypeError):
            continue
        if all(tensors[name].shape == tensor.shape for name, tensor in like.items()):
            return RawWeights(tensors, int(step))
    return None


def _write(out: Path, name: str, text: str, checkpoint: dict[str, Any]) -> tuple[Path, Path]:
    out.mkdir(parents=True, exist_ok=True)
    written = out / f"checkpoints-{name}.partial", out / f"hparams-{name}.cfg.partial"
    try:
        with open(written[0], "wb") as file:
            torch.save(checkpoint, file)
        written[1].write_text(text, encoding="utf-8")
    except (OSError, RuntimeError) as error:  # a full disk is either here
        _remove(out, written)
        raise ModelError(f"cannot write {written[0]} ({error}); make room on the disk and try again") from None
    return written


def _remove(out: Path, partial: tuple[Path, Path]) -> None:
    for path in partial:
        path.unlink(missing_ok=True)
    if not any(out.iterdir()):
        out.rmdir()


def _check_import(checkpoint: Path, config_file: Path, weights: Mapping[str, Tensor]) -> Config:
    read, own = import_published(checkpoint, config_file)
    if own.keys() != weights.keys() or not all(torch.equal(own[name], weights[name]) for name in own):
        raise ModelError(f"{checkpoint} does not give the run's weights when imported again; nothing was exported")
    return read
