"""Every field of a configuration at its ends: a sentence that names it, or a model that takes a step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from hvae_codec.config import Config, config_from_dict, config_to_dict, load_config, with_settings
from hvae_codec.errors import ConfigError
from hvae_codec.model.choices import gaussian_noise
from hvae_codec.model.hvae import HVAE
from hvae_codec.train.optimizer import FlatOptimizer
from hvae_codec.train.update import update

NUMBERS = (0, 1, -1, math.nan, math.inf, -math.inf, 2**31, 2**63, 2**64, 10**400, 1e308, -1e308, 1e-308)
VALUES = (*NUMBERS, "", "ü", "none", True, [], {}, [[[]]])
SMALL = 200_000  # parameters, and activations of two images, of a model that is built here


def fields(data: dict[str, Any], where: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Find every value in a configuration, by the keys that lead to it."""
    found: list[tuple[str | int, ...]] = []
    for key, value in data.items():
        if key == "stages":
            found += [(*where, key, 1, name) for name in (*value[1], "kept")]
        else:
            found += fields(value, (*where, key)) if isinstance(value, dict) else [(*where, key)]
    return found


def changed(config: Config, field: tuple[str | int, ...], value: object) -> dict[str, Any]:
    data = config_to_dict(config)
    place: Any = data
    for key in field[:-1]:
        place = place[key]
    place[field[-1]] = value
    return data


def is_small(config: Config) -> bool:
    model = config.model
    cells = model.cells_per_block * sum(s.linked_blocks + s.extra_bottom_up + s.extra_top_down for s in model.stages)
    blocks = cells + model.middle_layers
    widest = max(max(s.width, s.variates) * s.kernel * max(1.0, s.bottleneck) for s in model.stages)
    ends = max(model.input_kernel, model.output_kernel) * model.channels * model.mixtures
    return blocks <= 30 and max(widest, ends) ** 2 * model.resolution**2 <= 40 * SMALL and model.resolution <= 64


def take_a_step(config: Config) -> None:
    model = HVAE(config.model)
    optimizer = FlatOptimizer(model, config.optimizer, config.train.ema_decay)
    images = torch.zeros(2, config.model.channels, *2 * [config.model.image_size], dtype=torch.uint8)
    result = update(model, optimizer, config, images, gaussian_noise(torch.Generator().manual_seed(0)), 1)
    assert bool(result.skipped) or bool(torch.isfinite(result.grad_norm))


@pytest.mark.slow
def test_every_field_at_its_ends(tiny_config: Config):
    refused = steps = 0
    for field in fields(config_to_dict(tiny_config)):
        for value in VALUES:
            try:
                config = config_from_dict(changed(tiny_config, field, value))
            except ConfigError as error:
                refused += len(str(error)) < 300  # the value is cut short
                continue
            if is_small(config) and config != tiny_config and not config.train.compile:
                take_a_step(config)
                steps += 1
    assert refused > 500
    assert steps > 50


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("optimizer.beta1=1", "optimizer.beta1 is 1.0; .* below 1"),
        ("optimizer.beta2=1.0", "optimizer.beta2 is 1.0; .* below 1"),
        ("train.batch_size=99999999999999", "train.batch_size is 99999999999999; .* at most 999,999,999"),
        ("train.steps=1000000000", "train.steps is 1000000000; .* at most 999,999,999"),
        ("stage.width=100000000", "width is 100000000; .* at most 65,536"),
        ("stage.bottleneck=1e300", "bottleneck 1e[+]300 makes more than 65,536 channels"),
        ("loss.anneal_steps=9223372036854775808", "loss.anneal_steps is 9223372036854775808; .* below 2\\^63"),
        (f"optimizer.warmup_steps={10**400}", r"optimizer.warmup_steps is 1000.*\.\.\..*000; .* a smaller number"),
        (f"train.steps={'9' * 5000}", r"train.steps is '9999.*\.\.\.9999.*'; .* of type int"),
        (f"train.steps={'[' * 100_000}", r"train.steps is '\[\[.*\.\.\..*'; .* of type int"),
    ],
)
def test_numbers_beyond_their_ends_are_named(tiny_config: Config, setting: str, named: str):
    with pytest.raises(ConfigError, match=named) as error:
        with_settings(tiny_config, [setting])
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("name", ["deep.json", "deep.toml", "empty.json", "binary.toml", "binary.json", "folder.toml"])
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, name: str):
    path = tmp_path / name
    if name.startswith("folder"):
        path.mkdir()
    else:
        path.write_bytes(
            {"deep": b"a = " * name.endswith("toml") + b"[" * 100_000, "empty": b""}.get(name[:-5], b"\xff\0")
        )
    with pytest.raises(ConfigError, match=f"cannot read the configuration .*{name}"):
        load_config(path)
