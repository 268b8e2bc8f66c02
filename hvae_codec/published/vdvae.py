"""Makes a configuration and weights of a published VDVAE, whose file holds nothing but tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from ..config import Config
from ..errors import ConfigError, ModelError, UsageError
from ..presets import load_preset
from .state_dict import PARALLEL_PREFIX, checked_state
from .vdvae_config import config_of
from .vdvae_log import log_beside, read_vdvae_log
from .vdvae_weights import convert

Bins = Literal["exact", "published"]

VDVAE_PRESETS = tuple(f"{name}_vdvae" for name in ("cifar10", "imagenet32", "imagenet64", "ffhq256", "ffhq1024"))
"""Presets that are published networks, each named after the beginning of its files' names."""


@dataclass(frozen=True)
class Settings:
    """The configuration that a checkpoint's hyper-parameters make."""

    config: Config
    source: str  # what they were read from, in a few words
    unused: Path | None = None  # a log beside the checkpoint that was not read


def find_settings(checkpoint: Path, log: Path | None, preset: str | None, bins: Bins) -> Settings:
    """Read the hyper-parameters of a VDVAE checkpoint from `log` or a preset, else from the log beside it.

    Raises `UsageError` if there is no log, and neither is given, `ModelError` on a log that cannot be read,
    `ConfigError` if what it says describes no network of this core.
    """
    beside = log_beside(checkpoint)
    if preset is not None:
        if preset not in VDVAE_PRESETS:
            raise UsageError(f"--preset {preset} is no published VDVAE; known: {', '.join(VDVAE_PRESETS)}")
        config = load_preset(preset)
        return Settings(replace(config, model=replace(config.model, bins=bins)), f"the preset {preset}", beside)
    log = log or beside
    if log is None:
        raise UsageError(_no_settings(checkpoint))
    return Settings(_logged_config(log, bins), log.name)


def _logged_config(log: Path, bins: Bins) -> Config:
    read = read_vdvae_log(log)
    try:
        return config_of(read.hparams, exact_bins=bins == "exact", gpus=read.gpus)
    except ConfigError as error:
        raise ConfigError(f"{log}: {error}") from None


def _no_settings(checkpoint: Path) -> str:
    preset = f"{checkpoint.name.split('-')[0]}_vdvae"
    advice = preset if preset in VDVAE_PRESETS else f"one of {', '.join(VDVAE_PRESETS)}"
    return (
        f"{checkpoint} is a VDVAE checkpoint, which holds no hyper-parameters; give the log that was published with it "
        f"(--log ...-log.jsonl), or --preset {advice}"
    )


def is_raw(content: Mapping[str, object]) -> bool:
    """Whether a state dict has the weights of the last step, not averaged ones: its names say so."""
    return any(name.startswith(PARALLEL_PREFIX) for name in content)


def step_of(checkpoint: Path) -> int | None:
    """Find the step that the weights are from in a published name; None if it has none, as `latest-model-ema.th`.

    >>> step_of(Path("imagenet32-iter-1700000-model-ema.th"))
    1700000
    """
    found = re.search(r"iter-(\d{1,9})-model", checkpoint.name)
    return int(found[1]) if found else None


def to_weights(content: Mapping[object, object], checkpoint: Path, settings: Settings) -> dict[str, Tensor]:
    """Bring a published state dict under this project's names.

    Raises `ModelError` that names a tensor that does not fit the configuration, or is not of finite real numbers.
    """
    state = checked_state(content, str(checkpoint))
    try:
        return convert(state, settings.config)
    except ModelError as error:
        what = f"{checkpoint} does not fit the hyper-parameters of {settings.source}"
        raise ModelError(f"{what}: {error}; give the log or preset of its own training") from None
