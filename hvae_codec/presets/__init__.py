"""Configurations by name: the published ones and small ones, each a TOML file beside this one."""

from __future__ import annotations

import tomllib
from importlib import resources

from ..config import Config, config_from_dict, nearest
from ..errors import UsageError


def preset_names() -> list[str]:
    """Names of all presets, sorted."""
    files = resources.files(__name__).iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def load_preset(name: str) -> Config:
    """The preset of that name; `UsageError` names the nearest one where there is none."""
    names = preset_names()
    if name not in names:
        raise UsageError(f"unknown preset {name!r}{nearest(name, names)}")
    text = (resources.files(__name__) / f"{name}.toml").read_text(encoding="utf-8")
    return config_from_dict(tomllib.loads(text))
