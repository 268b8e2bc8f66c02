"""Configurations by name: the published ones and small ones, each a TOML file beside this one.

`reported.toml`, `measured.toml` and `parameters.toml` are no presets: they hold what others report of them, what their
training steps took here, and how large they are.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any

from ..config import Config, config_from_dict, nearest
from ..errors import UsageError

_REPORTED, _MEASURED, _PARAMETERS = "reported", "measured", "parameters"


def preset_names() -> list[str]:
    """List the names of all presets, sorted."""
    files = resources.files(__name__).iterdir()
    names = (file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))
    return sorted(name for name in names if name not in (_REPORTED, _MEASURED, _PARAMETERS))


def load_preset(name: str) -> Config:
    """Read the preset of that name; `UsageError` names the nearest one if there is none."""
    names = preset_names()
    if name not in names:
        raise UsageError(f"unknown preset {name!r}{nearest(name, names)}")
    return config_from_dict(_read_toml(name))


@dataclass(frozen=True)
class Reported:
    """What others report of a preset's configuration, each in the words of the source; "" if it says nothing."""

    nelbo: float  # negative ELBO on the data set's test images, in `unit`
    source: str  # document of the figures
    unit: str = "bits/dim"  # or `nats` per image
    time: str = ""  # how long it trained
    gpus: str = ""  # how many GPUs, and which
    memory: str = ""  # memory that training takes, on all GPUs
    note: str = ""  # what to know when comparing
    time_source: str = ""  # document of the time and the GPUs, if it is another one
    memory_source: str = ""  # document of the memory, if it is another one


def load_reported() -> dict[str, Reported]:
    """Read what others report, by preset; presets of which nothing was found are left out."""
    data = _read_toml(_REPORTED)
    titles = {key: source["title"] for key, source in data["sources"].items()}
    return {
        name: Reported(**{key: titles[value] if "source" in key else value for key, value in figures.items()})
        for name, figures in data["presets"].items()
    }


@dataclass(frozen=True)
class Measured:
    """What a training step of a preset took where this project measured it."""

    card: str  # the GPU
    precision: str  # numbers that the network computed with
    batch_size: int  # images a step
    ms: float  # milliseconds a step, median
    peak_mib: int  # memory of the GPU at most, MiB
    source: str  # the page of the documentation that says how

    @property
    def steps_per_second(self) -> float:
        """Steps per second."""
        return 1000.0 / self.ms


def load_measured() -> dict[str, list[Measured]]:
    """Read what training steps took, by preset; presets that were not measured are left out."""
    found: dict[str, list[Measured]] = {}
    for card in _read_toml(_MEASURED)["cards"]:
        for step in card["steps"]:
            figures = {key: value for key, value in step.items() if key != "preset"}
            found.setdefault(step["preset"], []).append(Measured(card["card"], source=card["source"], **figures))
    return found


def load_parameter_counts() -> dict[str, int]:
    """Read how many parameters each preset's model has: counted once, as counting takes torch and seconds."""
    return _read_toml(_PARAMETERS)


def _read_toml(name: str) -> dict[str, Any]:
    return tomllib.loads((resources.files(__name__) / f"{name}.toml").read_text(encoding="utf-8"))
