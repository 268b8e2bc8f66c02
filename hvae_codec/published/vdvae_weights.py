"""Renames the tensors of a published VDVAE, and brings their channels into this project's order."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..config import Config


def convert(state: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Return the weights of `state`, the published state dict, by this project's names, float32.

    A leading `module.` of a name is left out, as raw weights have it. Raises `ModelError` that names a tensor that is
    missing, unknown, of another shape than `config` says, or not finite.
    """
    raise NotImplementedError
