"""Reads the strings that describe a published VDVAE's blocks, and makes a configuration of its hyper-parameters."""

from __future__ import annotations

from ..config import Config
from .vdvae_hparams import VdvaeHparams


def config_of(hparams: VdvaeHparams, *, exact_bins: bool = True, gpus: int = 1) -> Config:
    """Make the configuration of a published VDVAE; `gpus` is how many it trained on, `n_batch` images on each.

    `exact_bins` tile the line, as stores and bounds need; those of the published program overlap below 8 bits. Raises
    `ConfigError` that names the entry of a string that is no entry, or that describes no network of this core.
    """
    raise NotImplementedError
