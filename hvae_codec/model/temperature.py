"""Temperatures of the prior over depth (paper 5.4): text or numbers -> one temperature per latent group.

0.85       every latent group
0.7:0.9    linear over depth: 0.7 at the first group (lowest resolution), 0.9 at the last
0.7,0.8,1  one per latent resolution, or one per latent group, from the lowest resolution to the highest
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..config import ModelConfig
from ..errors import UsageError

Temperature = float | str | Sequence[float]
"""One for all groups, a text as above, or a list as in the text's last form."""

_FORMS = "give one number, a linear schedule such as 0.7:0.9, or a list such as 0.7,0.8,0.9"


def group_temperatures(temperature: Temperature, config: ModelConfig) -> tuple[float, ...]:
    """Find the temperature of each latent group in top-down order, [groups]; z = mean + temperature · std · noise.

    A list of one temperature per latent resolution serves all groups of a resolution alike; if the model has as many
    groups, the two readings agree. Raises `UsageError` on a text of no known form, on a temperature that is
    negative or not finite, and on a list of another length.

    >>> from hvae_codec.presets import load_preset
    >>> model = load_preset("tiny32").model
    >>> group_temperatures("0.5:1.2", model)
    (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)
    >>> group_temperatures("0.5,0.6,0.7,0.8,1", model)
    (0.5, 0.6, 0.6, 0.7, 0.7, 0.8, 0.8, 1.0)
    """
    groups, values = len(config.groups), _numbers(temperature)
    if isinstance(temperature, str) and ":" in temperature:
        if len(values) != 2:
            raise UsageError(f"the temperature schedule is {temperature!r}; give its two ends, such as 0.7:0.9")
        # Rounded, so that a schedule in tenths gives tenths.
        return tuple(np.linspace(*values, groups).round(12).tolist())
    return values * groups if len(values) == 1 else _spread(values, config)


def _numbers(temperature: Temperature) -> tuple[float, ...]:
    parts: Sequence[float | str] = temperature if isinstance(temperature, Sequence) else [temperature]
    if isinstance(temperature, str):
        parts = temperature.replace(":", ",").split(",")
    try:
        numbers = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        raise UsageError(f"the temperature is {temperature!r}; {_FORMS}") from None
    for number in numbers:
        if not (math.isfinite(number) and number >= 0.0):
            raise UsageError(f"the temperature {number:g} is not possible; it must be 0 (the prior's mean) or above")
    return numbers


def _spread(values: tuple[float, ...], config: ModelConfig) -> tuple[float, ...]:
    """Spread a list of temperatures, one per resolution or one per group, to one per group."""
    groups = [group.resolution for group in config.groups]
    resolutions = sorted(set(groups))
    if len(values) == len(groups):
        return values
    if len(values) == len(resolutions):
        return tuple(values[resolutions.index(resolution)] for resolution in groups)
    sizes = ", ".join(map(str, resolutions))
    choices = f"1 for all, {len(resolutions)} (one per latent resolution: {sizes})"
    raise UsageError(f"{len(values)} temperatures are given; give {choices} or {len(groups)} (one per latent group)")
