"""Configuration: frozen dataclasses with documented fields, to and from TOML and JSON.

A model is a list of stages, one per latent resolution, from the highest resolution to the lowest (paper C.2: symmetric,
asymmetric and mixed designs are all lists of stages). Nothing here is global: a `Config` is an argument.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from .errors import ConfigError

CONFIG_FILE = "config.json"
"""A run's configuration, in its folder."""

T = TypeVar("T")

LATEST_RUN = "runs/latest"
"""The run that commands take if none is given: a pointer to the last one."""

ROW_GROUP_SIZE = 256
"""Images in a row group of a store by default."""

CHUNK_BYTES = 131072
"""Uncompressed bytes that a store's chunk of two images or more does not exceed by default: a random image then reads
in milliseconds."""


@dataclass(frozen=True)
class StageConfig:
    """The blocks of both paths that work at one resolution."""

    resolution: int
    """Height and width of this stage's activations and latents, in pixels."""
    width: int
    """Channels of the activations, of the skips and of the top-down state."""
    variates: int
    """Latent channels of each latent group."""
    kernel: int = 3
    """Kernel size of a residual cell's middle convolutions."""
    bottleneck: float = 0.25
    """Channels of a cell's middle convolutions, as a share of its input channels."""
    linked_blocks: int = 1
    """Blocks that hand a skip to the top-down path; each has one latent group there."""
    extra_bottom_up: int = 0
    """Blocks without a skip, before the first linked block of the bottom-up path."""
    extra_top_down: int = 0
    """Further latent groups that reuse a linked block's skip."""
    extra_top_down_after: int = 0
    """The linked block they follow, counted from 0 in top-down order."""

    @property
    def state_size(self) -> int:
        """Elements per image of the activations between two blocks: channels × height × width."""
        return self.width * self.resolution**2


@dataclass(frozen=True)
class GroupShape:
    """One latent group: all z of one top-down block, [variates, resolution, resolution]."""

    variates: int
    resolution: int

    @property
    def dims(self) -> int:
        """Latent dimensions of this group: variates × height × width."""
        return self.variates * self.resolution**2


@dataclass(frozen=True)
class ModelConfig:
    """All that the model's function and parameters depend on."""

    resolution: int
    """Height and width the network works at; binarised images are 4 smaller and padded by 2."""
    stages: tuple[StageConfig, ...]
    """From the highest resolution to the lowest."""
    channels: int = 3
    """Colour channels of the images."""
    bits: int = 8
    """Bits of a colour value that the model sees, 1 to 8; lower ones are cut off."""
    output: Literal["logistic_mixture", "bernoulli"] = "logistic_mixture"
    """Output distribution; `bernoulli` is for binarised images."""
    mixtures: int = 10
    """Components of the logistic mixture."""
    bins: Literal["exact", "published"] = "exact"
    """`exact` bins tile the line; `published` bins overlap below 8 bits and are there for parity."""
    output_scale: Literal["std", "logstd"] = "std"
    """Base of the mixture's scales (paper 4.2)."""
    output_beta: float = 0.6931472
    """Gradient smoothing of the mixture's scales."""
    min_output_logscale: float = -250.0
    """Floor of the mixture's log scales (paper section 6); -250 is none."""
    posterior_scale: Literal["std", "logstd"] = "std"
    """Base of the prior's and posterior's scales (paper 4.2)."""
    posterior_beta: float = 0.6931472
    """Gradient smoothing of the prior's and posterior's scales."""
    residual_distribution: bool = False
    """Whether the posterior is relative to the prior (NVAE)."""
    resample: Literal["projected", "plain"] = "projected"
    """How stages of different resolutions meet: `projected` pools and unpools with a convolution and LeakyReLU;
    `plain` averages and repeats pixels, without weights (VDVAE), so all stages have one width."""
    input_kernel: int = 1
    """Kernel size of the first convolution."""
    output_kernel: int = 1
    """Kernel size of the last convolution."""
    cells_per_block: int = 1
    """Residual cells in each block of both paths."""
    middle_layers: int = 2
    """k × k convolutions in the middle of each cell."""
    pointwise_ends: bool = True
    """Whether a cell's first and last convolutions are 1 × 1, or k × k like the middle ones."""
    stable_init: bool = True
    """Whether last convolutions start scaled by 1/sqrt(latent groups)."""
    zero_prior_weights: bool = False
    """Whether the prior cells' last convolutions start at zero."""

    def __post_init__(self) -> None:
        check_model(self)

    @property
    def padding(self) -> int:
        """Zeros added on each side of an image before the network sees it."""
        return 2 if self.output == "bernoulli" else 0

    @property
    def image_size(self) -> int:
        """Height and width of the images, in pixels."""
        return self.resolution - 2 * self.padding

    @property
    def image_dims(self) -> int:
        """Colour values per image, C × H × W: the dimensions of bits/dim."""
        return self.channels * self.image_size**2

    @property
    def nats_per_bit_dim(self) -> float:
        """ln 2 · C · H · W: nats per image divided by this are bits/dim."""
        return math.log(2.0) * self.image_dims

    @property
    def groups(self) -> tuple[GroupShape, ...]:
        """Shapes of the latent groups, in top-down order."""
        return tuple(
            GroupShape(stage.variates, stage.resolution)
            for stage in reversed(self.stages)
            for _ in range(stage.linked_blocks + stage.extra_top_down)
        )

    @property
    def latent_dims(self) -> int:
        """Latent dimensions of all groups."""
        return sum(group.dims for group in self.groups)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimiser and its learning rate (paper appendix A)."""

    name: Literal["adamax", "adam"] = "adamax"
    """Update rule."""
    learning_rate: float = 1e-3
    """Rate after warm-up."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Course of the rate after warm-up."""
    warmup_steps: float = 100.0
    """Steps of linear warm-up."""
    decay_start: int = 0
    """Step at which the cosine starts."""
    decay_steps: int = 100_000
    """Length of the cosine, in steps."""
    min_learning_rate: float = 2e-4
    """Rate at the end of the cosine and after."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the infinity norm (adamax) or second moment (adam)."""
    epsilon: float = 1e-8
    """Added to the denominator."""
    skip_threshold: float | None = 800.0
    """Updates whose global gradient norm reaches this are skipped; none: only non-finite ones."""
    clip_norm: float | None = None
    """Global gradient norm that larger gradients are scaled down to; none: no clipping."""

    def __post_init__(self) -> None:
        _check_section("optimizer", self, above_zero=("learning_rate", "epsilon", "skip_threshold", "clip_norm"))
        _check_section("optimizer", self, shares=("beta1", "beta2"))


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the KL in the training loss (NVAE's schedules)."""

    kl_schedule: Literal["linear", "logistic", "constant"] = "linear"
    """How beta grows with the step."""
    anneal_start: int = 21
    """Step at which the linear schedule starts."""
    anneal_steps: int = 5000
    """Length of the linear schedule, in steps."""
    beta_min: float = 1e-4
    """Smallest beta of the linear schedule."""
    activation_step: int = 10_000
    """Step at which the logistic schedule reaches 1/2."""
    growth_rate: float = 1e-5
    """Steepness of the logistic schedule, per step."""
    balance_groups: bool = True
    """Whether the groups' KL is balanced at first."""
    balance_steps: int = 10_000
    """Last step with balancing."""
    balance_by_size: bool = True
    """Whether a group's weight is its KL per latent dimension, not its whole KL."""

    def __post_init__(self) -> None:
        _check_section("loss", self, shares=("beta_min",))


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length and batches of training."""

    steps: int = 100_000
    """Updates in all."""
    batch_size: int = 64
    """Images per step, of all processes together."""
    ema_decay: float = 0.9999
    """Decay of the exponential moving average of the weights."""
    horizontal_flip: bool = True
    """Whether images are mirrored at random."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Numbers the network computes with: bf16 is autocast (parameters, KL, likelihood and loss stay float32); auto
    is bf16 on CPUs with instructions for it, fp32 elsewhere. A resumed run computes with the numbers it began with."""
    checkpoint_activations: bool = False
    """Whether activations are computed again in the backward pass instead of saved: less memory, more time."""
    compile: bool = False
    """Whether the network is compiled first (torch.compile): slow to start, then faster on GPUs."""

    def __post_init__(self) -> None:
        _check_section("train", self, above_zero=("steps", "batch_size"), shares=("ema_decay",))


@dataclass(frozen=True)
class Config:
    """Everything a run is made from."""

    model: ModelConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def check_model(model: ModelConfig) -> None:
    """Raise `ConfigError` if the stages and sizes of `model` describe no network."""
    _check_section("model", model, above_zero=("output_beta", "posterior_beta"))
    _require(1 <= model.bits <= 8, f"model.bits is {model.bits}; it must be 1 to 8")
    _require(len(model.stages) > 0, "the model has no stages; give at least one [[stages]] line")
    positive = ("resolution", "channels", "mixtures", "input_kernel", "output_kernel", "cells_per_block")
    for name in positive:
        _require(getattr(model, name) >= 1, f"model.{name} is {getattr(model, name)}; it must be at least 1")
    _require(model.middle_layers >= 0, f"model.middle_layers is {model.middle_layers}; it must be at least 0")
    for name in ("input_kernel", "output_kernel"):
        _require(getattr(model, name) % 2 == 1, f"model.{name} is {getattr(model, name)}; it must be odd")
    smallest = 2 * model.padding + 1
    _require(model.resolution >= smallest, f"model.resolution is {model.resolution}; it must be at least {smallest}")
    first = model.stages[0].resolution
    _require(first == model.resolution, f"the first stage's resolution is {first}, the model's {model.resolution}")
    for stage in model.stages:
        _check_stage(stage)
    for above, below in zip(model.stages, model.stages[1:], strict=False):
        _check_neighbours(above, below)
    widths = list(dict.fromkeys(stage.width for stage in model.stages))
    one = model.resample == "projected" or len(widths) == 1
    _require(one, f"the stages' widths are {widths}; model.resample = plain needs one width, projected takes any")


def _check_section(section: str, config: object, above_zero: Sequence[str] = (), shares: Sequence[str] = ()) -> None:
    """Check one of the dataclasses above: finite numbers, known words, and what the named fields allow."""
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if typing.get_origin(hint) is Literal:
            words = typing.get_args(hint)
            _require(value in words, f"{section}.{name} is {value!r}; it must be one of {', '.join(words)}")
        elif isinstance(value, float):
            _require(math.isfinite(value), f"{section}.{name} is {value}; it must be a finite number")
        if isinstance(value, int | float):
            _require(name not in above_zero or value > 0, f"{section}.{name} is {value}; it must be above 0")
            _require(name not in shares or 0 <= value <= 1, f"{section}.{name} is {value}; it must be from 0 to 1")


def _check_stage(stage: StageConfig) -> None:
    where = f"stage at resolution {stage.resolution}"
    for name in ("resolution", "width", "variates", "kernel", "linked_blocks"):
        _require(getattr(stage, name) >= 1, f"{where}: {name} is {getattr(stage, name)}; it must be at least 1")
    _require(stage.kernel % 2 == 1, f"{where}: kernel is {stage.kernel}; it must be odd")
    mid = stage.width * stage.bottleneck
    _require(math.isfinite(mid) and mid >= 1, f"{where}: bottleneck {stage.bottleneck} leaves no channel")
    for name in ("extra_bottom_up", "extra_top_down", "extra_top_down_after"):
        _require(getattr(stage, name) >= 0, f"{where}: {name} is {getattr(stage, name)}; it must be at least 0")
    after = stage.extra_top_down_after
    _require(after < stage.linked_blocks, f"{where}: extra_top_down_after is {after}, beyond the last linked block")


def _check_neighbours(above: StageConfig, below: StageConfig) -> None:
    where = f"stages at resolutions {above.resolution} and {below.resolution}"
    _require(below.resolution <= above.resolution, f"{where}: order them from the highest to the lowest")
    _require(above.resolution % below.resolution == 0, f"{where}: the stride between them is not a whole number")
    if above.resolution == below.resolution:
        _require(above.width == below.width, f"{where}: widths {above.width} and {below.width} differ without a pool")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


# --- to and from plain data ------------------------------------------------------------------------------------------


def config_to_dict(config: Config) -> dict[str, Any]:
    """Convert to plain data for JSON: nested dicts, lists, numbers, strings, booleans and None."""
    data = dataclasses.asdict(config)
    data["model"]["stages"] = list(data["model"]["stages"])
    return data


def config_from_dict(data: Mapping[str, Any]) -> Config:
    """Build a configuration from plain data; `stages` may also stand at the top level, as in TOML.

    Raises `ConfigError` on an unknown key (naming the nearest one), a missing key or a value of the wrong type.
    """
    data = dict(_table(data, ""))
    if "stages" in data:
        data["model"] = {**_table(data.get("model", {}), "model"), "stages": data.pop("stages")}
    return _build(Config, data, "")


def _build(cls: type[T], data: object, where: str) -> T:
    data = _table(data, where.rstrip("."))
    hints = typing.get_type_hints(cls)
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            raise ConfigError(f"unknown key {where}{key}{nearest(key, known)}")
    for f in fields(cls):  # type: ignore[arg-type]
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and f.name not in data:
            raise ConfigError(f"{where}{f.name} is missing; give it a value")
    return cls(**{key: _convert(hints[key], value, f"{where}{key}") for key, value in data.items()})


def _table(data: object, where: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where or 'the configuration'} is {data!r}; it must be a table of keys")
    return data


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Convert `value` to the annotated type `hint`; raises `ConfigError` that names `where` it stands."""
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, f"{where}.")
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ConfigError(f"{where} is {value!r}; it must be a list")
        return tuple(_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Literal:
        if value in args:
            return value
        raise ConfigError(f"{where} is {value!r}; it must be one of {', '.join(map(str, args))}")
    if origin is types.UnionType:
        return None if value is None or value == "none" else _convert(args[0], value, where)
    return _convert_number(hint, value, where)


def _convert_number(hint: type, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise ConfigError(f"{where} is {value!r}; it must be of type {hint.__name__}")


def nearest(word: str, known: Sequence[str]) -> str:
    """Finish an error sentence: name the known word nearest to a misspelt one, or all of them.

    >>> nearest("widht", ["width", "kernel"])
    '; did you mean width?'
    """
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"


# --- files -----------------------------------------------------------------------------------------------------------


def load_config(path: Path) -> Config:
    """Read a `.toml` or `.json` configuration; `ConfigError` names the file and what is wrong with it."""
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file {path}") from None
    except (ValueError, OSError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from None
    try:
        return config_from_dict(data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def config_to_toml(config: Config) -> str:
    """Write TOML with one line per stage; keys at their defaults in a stage are left out, all others are written."""
    import tomlkit  # most commands write no TOML

    data = config_to_dict(config)
    document = tomlkit.document()
    stages = tomlkit.array().multiline(True)
    for stage in config.model.stages:
        line = tomlkit.inline_table()
        line.update(_without_defaults(stage))
        stages.append(line)
    document.add("stages", stages)
    for section, values in data.items():
        table = tomlkit.table()
        table.update({k: "none" if v is None else v for k, v in values.items() if k != "stages"})
        document.add(section, table)
    return tomlkit.dumps(document)


def _without_defaults(stage: StageConfig) -> dict[str, Any]:
    return {f.name: getattr(stage, f.name) for f in fields(stage) if getattr(stage, f.name) != f.default}


# --- changes from the command line -----------------------------------------------------------------------------------


def with_settings(config: Config, settings: Sequence[str]) -> Config:
    """Apply `key=value` settings to `config`, in order.

    Keys are `section.name` (`train.batch_size=32`), `stage.name` (every stage) or `stage32.name` (the stages at
    resolution 32). Values are TOML, or bare words. Raises `ConfigError` on a key or value that does not fit.
    """
    data = config_to_dict(config)
    for setting in settings:
        key, equals, text = setting.partition("=")
        section, dot, name = key.strip().partition(".")
        if not equals or not dot:
            raise ConfigError(f"--set {setting!r} is not of the form section.key=value, such as train.batch_size=32")
        for table in _tables_of(data, section, config):
            table[name] = _parse_value(text.strip())
        config_from_dict(data)  # each must fit, or the next one may have no table to change
    return config_from_dict(data)


def _tables_of(data: dict[str, Any], section: str, config: Config) -> Iterator[dict[str, Any]]:
    stages = data["model"]["stages"]
    if section in data:
        yield data[section]
    elif section == "stage":
        yield from stages
    elif section.startswith("stage") and any(section == f"stage{s.resolution}" for s in config.model.stages):
        yield from (stage for stage in stages if section == f"stage{stage['resolution']}")
    else:
        known = [*data, "stage", *dict.fromkeys(f"stage{s.resolution}" for s in config.model.stages)]
        raise ConfigError(f"unknown section {section!r}{nearest(section, known)}")


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
