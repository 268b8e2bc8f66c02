"""Configuration: frozen dataclasses with documented fields, to and from TOML and JSON.

A model is a list of stages, one per latent resolution, from the highest resolution to the lowest (paper C.2: symmetric,
asymmetric and mixed designs are all lists of stages). Nothing here is global: a `Config` is an argument.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import itertools
import json
import math
import reprlib
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from .errors import ConfigError
from .text_files import read_text

CONFIG_FILE = "config.json"  # a run's configuration, in its folder

LATEST_RUN = "runs/latest"  # the run that commands take if none is given: a pointer to the last one

ROW_GROUP_SIZE = 256  # images in a row group of a store by default

CHUNK_BYTES = 131072
"""Largest chunk of two images or more in a store by default, uncompressed: a random image reads in milliseconds."""


LARGEST_SEED = 2**63 - 1  # of everything random: what all generators take

_LARGEST_SIZE = 2**16  # of anything in a network: its parameters then are too many for any memory, but can be counted
_LARGEST_COUNT = 999_999_999  # of steps, whose states have names of nine digits, and of images a step
_LARGEST_NUMBER = 1e20  # float32 holds it, also divided by the smallest 1 - beta1


Activation = Literal["silu", "gelu"]
"""Activation function of a network's cells."""

Init = Literal["xavier", "uniform"]
"""How a network's weights start."""


class _Section:
    """A section of the configuration: numbers are finite, words known, and the fields named here within bounds."""

    above_zero: ClassVar[tuple[str, ...]] = ()
    from_0_to_1: ClassVar[tuple[str, ...]] = ()
    from_0_below_1: ClassVar[tuple[str, ...]] = ()
    counts: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        section = type(self).__name__.removesuffix("Config").lower()
        for name, hint in _type_hints(typing.cast(type, type(self))).items():
            value, words = getattr(self, name), typing.get_args(hint)
            if typing.get_origin(hint) is Literal:
                _require(value in words, f"{section}.{name} is {value!r}; it must be one of {', '.join(words)}")
            elif isinstance(value, float):
                finite = abs(value) <= _LARGEST_NUMBER
                _require(finite, f"{section}.{name} is {value}; it must be a finite number, 1e20 at most")
            if name in self.above_zero:
                _require(value is None or value > 0, f"{section}.{name} is {value}; it must be above 0")
            if name in self.from_0_to_1:
                _require(0 <= value <= 1, f"{section}.{name} is {value}; it must be from 0 to 1")
            if name in self.from_0_below_1:
                _require(0 <= value < 1, f"{section}.{name} is {value}; it must be at least 0 and below 1")
            if name in self.counts:
                _check_range(1, _LARGEST_COUNT, self, f"{section}.", name)


@dataclass(frozen=True)
class StageConfig:
    """The blocks of both paths that work at one resolution."""

    resolution: int  # height and width of this stage's activations and latents, in pixels
    width: int  # channels of the activations, of the skips and of the top-down state
    variates: int  # latent channels of each latent group
    kernel: int = 3  # kernel size of a residual cell's middle convolutions
    bottleneck: float = 0.25  # channels of a cell's middle convolutions, as a share of its input channels
    linked_blocks: int = 1  # blocks that hand a skip to the top-down path; each has one latent group there; 0: none
    extra_bottom_up: int = 0  # blocks without a skip, before the first linked block of the bottom-up path
    extra_top_down: int = 0  # further latent groups that reuse a linked block's skip
    extra_top_down_after: int = 0  # the linked block they follow, counted from 0 in top-down order
    # Variates that each latent group of this stage still has, in top-down order, if others were pruned away.
    kept: tuple[int, ...] | None = None

    @property
    def latent_groups(self) -> int:
        """Latent groups of this stage, one for each linked block and each extra top-down block."""
        return self.linked_blocks + self.extra_top_down

    @property
    def group_variates(self) -> tuple[int, ...]:
        """Variates of each latent group of this stage, in top-down order."""
        return (self.variates,) * self.latent_groups if self.kept is None else self.kept

    @property
    def state_size(self) -> int:
        """Elements per image of the activations between two blocks: channels × height × width."""
        return self.width * self.resolution**2


@dataclass(frozen=True)
class GroupShape:
    """One latent group: all z of one top-down block, [variates, resolution, resolution]."""

    variates: int  # 0 if all were pruned away
    resolution: int

    @property
    def dims(self) -> int:
        """Latent dimensions of this group: variates × height × width."""
        return self.variates * self.resolution**2


@dataclass(frozen=True)
class ModelConfig(_Section):
    """All that the model's function and parameters depend on."""

    above_zero = ("output_beta", "posterior_beta", "input_std")

    resolution: int  # height and width the network works at; binarised images are 4 smaller and padded by 2
    stages: tuple[StageConfig, ...]  # from the highest resolution to the lowest
    channels: int = 3  # colour channels of the images
    bits: int = 8  # bits of a colour value that the model sees, 1 to 8; lower ones are cut off
    output: Literal["logistic_mixture", "bernoulli"] = "logistic_mixture"  # p(x | z); `bernoulli`: binarised images
    mixtures: int = 10  # components of the logistic mixture
    bins: Literal["exact", "published"] = "exact"  # `exact` tile the line; `published` overlap below 8 bits, for parity
    output_scale: Literal["std", "logstd"] = "std"  # base of the mixture's scales (paper 4.2)
    output_beta: float = 0.6931472  # gradient smoothing of the mixture's scales
    min_output_logscale: float = -250.0  # floor of the mixture's log scales (paper section 6); -250 is none
    posterior_scale: Literal["std", "logstd"] = "std"  # base of the prior's and posterior's scales (paper 4.2)
    posterior_beta: float = 0.6931472  # gradient smoothing of the prior's and posterior's scales
    residual_distribution: bool = False  # whether the posterior is relative to the prior (NVAE)
    # How stages of different resolutions meet: `projected` pools and unpools with a convolution and LeakyReLU; `plain`
    # averages and repeats pixels, without weights (VDVAE): channels are filled up with zeros on the way down in
    # resolution and cut off on the way up, so no stage is wider than the next lower one.
    resample: Literal["projected", "plain"] = "projected"
    input_kernel: int = 1  # kernel size of the first convolution
    output_kernel: int = 1  # kernel size of the last convolution
    cells_per_block: int = 1  # residual cells in each block of both paths
    middle_layers: int = 2  # k × k convolutions in the middle of each cell
    pointwise_ends: bool = True  # whether a cell's first and last convolutions are 1 × 1, or k × k like the middle ones
    stable_init: bool = True  # whether last convolutions start scaled by 1/sqrt(latent groups)
    zero_prior_weights: bool = False  # whether the prior cells' last convolutions start at zero
    learned_steps: bool = False  # whether z are codes: posterior means rounded to multiples of a learned step a variate
    activation: Activation = "silu"  # of the cells; `gelu` is the exact one (VDVAE)
    # What a linked block hands to the top-down path: a 1 × 1 convolution of what its cells compute, or what the block
    # was given, as it is (VDVAE). What follows the last skip is never computed, so a last `raw` block has no cells.
    skips: Literal["projected", "raw"] = "projected"
    # What gives the parameters of priors and posteriors: a 1 × 1 convolution after the cell, or the cell's last
    # convolution itself (VDVAE).
    heads: Literal["projected", "direct"] = "projected"
    largest_start: int | None = None  # largest resolution whose state has a learned start (VDVAE); none: all have one
    output_gain: bool = False  # whether the state's channels get a learned factor and summand before the output (VDVAE)
    # How weights start: `xavier`, or uniform within 1/sqrt(inputs) with zero biases and zero starts (VDVAE), where
    # `stable_init` scales the bottom-up path by its own number of blocks.
    init: Init = "xavier"
    input_bits: int | None = None  # bits of a colour value that the bottom-up path reads; none: `bits`
    input_mean: float = 127.5  # the bottom-up path reads (colour value - input_mean) / input_std
    input_std: float = 127.5
    open_highest_bin: bool = True  # whether the highest of `published` bins below 8 bits has no upper end; not in VDVAE

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_model(self)

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
    def pixel_bits(self) -> int:
        """Bits of a colour value of an image as the model sees it."""
        return 1 if self.output == "bernoulli" else self.bits

    @property
    def groups(self) -> tuple[GroupShape, ...]:
        """Shapes of the latent groups, in top-down order."""
        return tuple(
            GroupShape(variates, stage.resolution)
            for stage in reversed(self.stages)
            for variates in stage.group_variates
        )

    @property
    def group_skips(self) -> tuple[int, ...]:
        """The skip that each latent group's posterior reads, in top-down order: a linked block's number, bottom-up."""
        skips: list[int] = []
        linked = sum(stage.linked_blocks for stage in self.stages)
        for stage in reversed(self.stages):
            for number in range(stage.linked_blocks):
                linked -= 1
                extra = stage.extra_top_down if number == stage.extra_top_down_after else 0
                skips += [linked] * (1 + extra)
        return tuple(skips)

    @property
    def latent_dims(self) -> int:
        """Latent dimensions of all groups."""
        return sum(group.dims for group in self.groups)

    @property
    def top_down_stages(self) -> tuple[StageConfig, ...]:
        """Stages with latent groups, in top-down order: from the lowest resolution to the highest."""
        return tuple(stage for stage in reversed(self.stages) if stage.latent_groups)

    @property
    def unpruned_groups(self) -> tuple[GroupShape, ...]:
        """Shapes of the latent groups before any variates were pruned away; those of `groups` if none were."""
        each = ((stage, _) for stage in reversed(self.stages) for _ in range(stage.latent_groups))
        return tuple(GroupShape(stage.variates, stage.resolution) for stage, _ in each)

    @property
    def unpruned_dims(self) -> int:
        """Latent dimensions of all groups before any were pruned away; those of `latent_dims` if none were."""
        return sum(group.dims for group in self.unpruned_groups)

    @property
    def is_slim(self) -> bool:
        """Whether variates were pruned away."""
        return any(stage.kept is not None for stage in self.stages)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(_Section):
    """The optimiser and its learning rate (paper appendix A)."""

    above_zero = ("learning_rate", "epsilon", "skip_threshold", "clip_norm")
    from_0_below_1 = ("beta1", "beta2", "weight_decay")

    name: Literal["adamax", "adam", "adamw"] = "adamax"  # update rule
    learning_rate: float = 1e-3  # rate after warm-up
    schedule: Literal["cosine", "constant"] = "cosine"  # course of the rate after warm-up
    warmup_steps: float = 100.0  # steps of linear warm-up
    warmup_from_zero: bool = False  # whether the first step has rate 0, and each later one what it had a step earlier
    decay_start: int = 0  # step at which the cosine starts
    decay_steps: int = 100_000  # length of the cosine, in steps
    min_learning_rate: float = 2e-4  # rate at the end of the cosine and after
    beta1: float = 0.9  # decay of the first moment
    beta2: float = 0.999  # decay of the infinity norm (adamax) or second moment (adam, adamw)
    epsilon: float = 1e-8  # added to the denominator
    weight_decay: float = 0.0  # share of every weight, times the rate, that each update takes away (adamw)
    skip_threshold: float | None = 800.0  # gradient norm from which updates are skipped; none: only non-finite
    clip_norm: float | None = None  # global gradient norm that larger gradients are scaled down to; none: no clipping

    def __post_init__(self) -> None:
        super().__post_init__()
        decays = self.name == "adamw" or not self.weight_decay
        remedy = f"optimizer.name = {self.name} has none; give 0, or the name adamw"
        _require(decays, f"optimizer.weight_decay is {self.weight_decay}; {remedy}")


@dataclass(frozen=True, kw_only=True)
class LossConfig(_Section):
    """Weights of the KL in the training loss (NVAE's schedules)."""

    from_0_to_1 = ("beta_min",)

    kl_schedule: Literal["linear", "logistic", "constant"] = "linear"  # how beta grows with the step
    anneal_start: int = 21  # step at which the linear schedule starts
    anneal_steps: int = 5000  # length of the linear schedule, in steps
    beta_min: float = 1e-4  # smallest beta of the linear schedule
    activation_step: int = 10_000  # step at which the logistic schedule reaches 1/2
    growth_rate: float = 1e-5  # steepness of the logistic schedule, per step
    balance_groups: bool = True  # whether the groups' KL is balanced at first
    balance_steps: int = 10_000  # last step with balancing
    balance_by_size: bool = True  # whether a group's weight is its KL per latent dimension, not its whole KL


@dataclass(frozen=True, kw_only=True)
class TrainConfig(_Section):
    """Length and batches of training."""

    counts = ("steps", "batch_size", "accumulate")
    from_0_to_1 = ("ema_decay",)

    steps: int = 100_000  # updates in all
    batch_size: int = 64  # images per step, of all processes together
    ema_decay: float = 0.9999  # decay of the exponential moving average of the weights
    horizontal_flip: bool = True  # whether images are mirrored at random
    # Numbers the network computes with: bf16 is autocast (parameters, KL, likelihood and loss stay float32); auto is
    # bf16 on CPUs with instructions for it, fp32 elsewhere. A resumed run computes with the numbers it began with.
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    accumulate: int = 1  # equal parts of a step's images, of each process, computed in turn: less memory, the same step
    checkpoint_activations: bool = False  # compute activations again in the backward pass: less memory, more time
    compile: bool = False  # whether the network is compiled first (torch.compile): slow to start, then faster on GPUs


@dataclass(frozen=True, kw_only=True)
class PruningConfig(_Section):
    """What `prune` took away from a model before it was trained on, and how."""

    from_0_to_1 = ("share",)

    run: str  # the run that it was pruned from
    model_hash: str  # the model of that, by its configuration and weights
    rule: str  # what was asked for, such as `keep 1%`
    share: float  # share of the unpruned model's latent dimensions that was asked for
    # Of each latent group, in top-down order, the variates of the unpruned model that are left: `0-3 7`.
    kept: tuple[str, ...]
    # What a pruned variate is: the prior's mean, so that the model can do without it, or a sample of the prior, so that
    # the bound is one of the whole model.
    collapse: Literal["mean", "sample"] = "mean"


@dataclass(frozen=True)
class Config:
    """Everything a run is made from."""

    model: ModelConfig  # the network
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)  # how weights are updated
    loss: LossConfig = field(default_factory=LossConfig)  # what is minimised
    train: TrainConfig = field(default_factory=TrainConfig)  # steps, batches, averaged weights
    pruning: PruningConfig | None = None  # of a run that was pruned


def _check_model(model: ModelConfig) -> None:
    """Raise `ConfigError` if the stages and sizes of `model` describe no network."""
    for name, bits in (("bits", model.bits), ("input_bits", model.input_bits)):
        _require(bits is None or 1 <= bits <= 8, f"model.{name} is {bits}; it must be 1 to 8")
    floor = model.min_output_logscale
    _require(
        floor <= 80, f"model.min_output_logscale is {floor}; it must be at most 80, as float32 holds no larger scale"
    )
    _require(len(model.stages) > 0, "the model has no stages; give at least one [[stages]] line")
    kernels = ("input_kernel", "output_kernel")
    _check_size(1, model, "model.", "channels", "mixtures", *kernels, "cells_per_block")
    _check_size(0, model, "model.", "middle_layers")
    _check_size(2 * model.padding + 1, model, "model.", "resolution")
    _check_odd(model, "model.", *kernels)
    first = model.stages[0].resolution
    _require(first == model.resolution, f"the first stage's resolution is {first}, the model's {model.resolution}")
    for stage in model.stages:
        _check_stage(stage)
    for above, below in itertools.pairwise(model.stages):
        _check_neighbours(above, below)
    _check_paths(model)


def _check_paths(model: ModelConfig) -> None:
    """Raise `ConfigError` if the stages of `model`, each sound by itself, make no two paths."""
    stages = model.stages
    for stage in stages[:-1]:
        where, blocks = f"stage at resolution {stage.resolution}: ", stage.linked_blocks + stage.extra_bottom_up
        _require(blocks > 0, f"{where}it has no block; give extra_bottom_up, or leave the stage out")
    first = f"stage at resolution {stages[0].resolution}: linked_blocks is 0"
    _require(stages[0].linked_blocks > 0, f"{first}; its state gives the image, so it must be at least 1")
    _require(any(group.variates for group in model.groups), "the stages' kept leave no variate; keep at least one")
    widths = [width for width, _ in itertools.groupby(stage.width for stage in stages)]
    fits = model.resample == "projected" or widths == sorted(widths)
    remedy = "model.resample = plain takes widths that grow from stage to stage or stay, projected takes any"
    _require(fits, f"the stages' widths are {widths}; {remedy}")
    lowest, largest = model.top_down_stages[0].resolution, model.largest_start
    starts = largest is None or largest >= lowest
    _require(starts, f"model.largest_start is {largest}; the lowest latent groups, at {lowest}, need a learned start")


def _check_stage(stage: StageConfig) -> None:
    where = f"stage at resolution {stage.resolution}: "
    _check_size(1, stage, where, "resolution", "width", "variates", "kernel")
    _check_size(0, stage, where, "linked_blocks", "extra_bottom_up", "extra_top_down", "extra_top_down_after")
    _check_odd(stage, where, "kernel")
    middle = stage.width * stage.bottleneck
    _require(middle >= 1, f"{where}bottleneck {stage.bottleneck} leaves no channel")
    most = f"bottleneck {stage.bottleneck} makes more than {_LARGEST_SIZE:,} channels"
    _require(middle <= _LARGEST_SIZE, f"{where}{most}")
    after, extra = stage.extra_top_down_after, stage.extra_top_down
    fits = stage.linked_blocks > 0 or not extra
    _require(fits, f"{where}extra_top_down is {extra}; without a linked block it must be 0")
    inside = after < max(stage.linked_blocks, 1)
    _require(inside, f"{where}extra_top_down_after is {after}, beyond the last linked block")
    if stage.kept is not None:
        _check_kept(stage, stage.kept, where)


def _check_kept(stage: StageConfig, kept: tuple[int, ...], where: str) -> None:
    remedy = f"give one number for each of its latent groups, {stage.latent_groups} in all"
    _require(len(kept) == stage.latent_groups, f"{where}kept is {reprlib.repr(list(kept))}; {remedy}")
    for number, variates in enumerate(kept):
        inside = 0 <= variates <= stage.variates
        _require(inside, f"{where}kept[{number}] is {variates}; it must be 0 to {stage.variates}, the variates")


def _check_size(least: int, config: object, where: str, *names: str) -> None:
    _check_range(least, _LARGEST_SIZE, config, where, *names)


def _check_range(least: int, most: int, config: object, where: str, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        bound = f"at least {least}" if value < least else f"at most {most:,}"
        _require(least <= value <= most, f"{where}{name} is {reprlib.repr(value)}; it must be {bound}")


def _check_odd(config: object, where: str, *names: str) -> None:
    for name in names:
        _require(getattr(config, name) % 2 == 1, f"{where}{name} is {getattr(config, name)}; it must be odd")


def _check_neighbours(above: StageConfig, below: StageConfig) -> None:
    where = f"stages at resolutions {above.resolution} and {below.resolution}"
    _require(below.resolution <= above.resolution, f"{where}: order them from the highest to the lowest")
    _require(above.resolution % below.resolution == 0, f"{where}: the stride between them is not a whole number")
    if above.resolution == below.resolution:
        _require(above.width == below.width, f"{where}: widths {above.width} and {below.width} differ without a pool")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


_LEFT_OUT_AT_DEFAULTS = {
    "learned_steps",
    "activation",
    "skips",
    "heads",
    "largest_start",
    "output_gain",
    "init",
    "input_bits",
    "input_mean",
    "input_std",
    "open_highest_bin",
}
"""Keys of a model that are written only if they are not at their defaults, as before they existed: hashes of models,
and with them stores and rankings, depend on what is written."""


def config_to_dict(config: Config) -> dict[str, Any]:
    """Convert to plain data for JSON."""
    data = dataclasses.asdict(config)
    data["model"]["stages"] = [_stage_to_dict(stage) for stage in data["model"]["stages"]]
    for known in fields(ModelConfig):
        if known.name in _LEFT_OUT_AT_DEFAULTS and data["model"][known.name] == known.default:
            del data["model"][known.name]
    if config.train.accumulate == 1:
        del data["train"]["accumulate"]
    if config.pruning is None:
        del data["pruning"]
    else:
        data["pruning"]["kept"] = list(config.pruning.kept)
    return data


def _stage_to_dict(data: dict[str, Any]) -> dict[str, Any]:
    """Leave out `kept` if nothing was pruned away, as before that key existed: hashes of models depend on it."""
    kept = data.pop("kept")
    return data if kept is None else {**data, "kept": list(kept)}


def config_from_dict(data: Mapping[str, Any]) -> Config:
    """Build a configuration from plain data; `stages` may also stand at the top level, as in TOML.

    Raises `ConfigError` on an unknown key (naming the nearest one), a missing key or a value of the wrong type.
    """
    data = dict(_table(data, ""))
    if "stages" in data:
        data["model"] = {**_table(data.get("model", {}), "model"), "stages": data.pop("stages")}
    return _build(Config, data, "")


@functools.cache  # Python compiles every annotation anew, which takes most of the time of reading a configuration
def _type_hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _build(cls: type, data: object, where: str) -> Any:
    data = _table(data, where.rstrip("."))
    hints = _type_hints(cls)
    known = [f.name for f in fields(cls)]
    for key in data:
        if key not in known:
            raise ConfigError(f"unknown key {where}{key}{nearest(key, known)}")
    for f in fields(cls):
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and f.name not in data:
            raise ConfigError(f"{where}{f.name} is missing; give it a value")
    return cls(**{key: _convert(hints[key], value, f"{where}{key}") for key, value in data.items()})


def _table(data: object, where: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where or 'the configuration'} is {reprlib.repr(data)}; it must be a table of keys")
    return data


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Convert `value` to the annotated type `hint`; raises `ConfigError` that names `where` it stands."""
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, f"{where}.")
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ConfigError(f"{where} is {reprlib.repr(value)}; it must be a list")
        return tuple(_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Literal:
        if value in args:
            return value
        raise ConfigError(f"{where} is {reprlib.repr(value)}; it must be one of {', '.join(map(str, args))}")
    if origin is types.UnionType:
        return None if value is None or value == "none" else _convert(args[0], value, where)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return _float(value, where)
    if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        _require(hint is not int or abs(value) < 2**63, f"{where} is {reprlib.repr(value)}; it must be below 2^63")
        return value
    raise ConfigError(f"{where} is {reprlib.repr(value)}; it must be of type {hint.__name__}")


def _float(value: int | float, where: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ConfigError(f"{where} is {reprlib.repr(value)}; it must be a smaller number") from None


def nearest(word: str, known: Sequence[str]) -> str:
    """Finish an error sentence: name the known word nearest to a misspelt one, or all of them.

    >>> nearest("widht", ["width", "kernel"])
    '; did you mean width?'
    """
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"


def load_config(path: Path) -> Config:
    """Read a `.toml` or `.json` configuration; `ConfigError` names the file and what is wrong with it."""
    try:
        text = read_text(path)
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file {path}") from None
    except (ValueError, RecursionError, OSError) as error:
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
        line.update({f.name: getattr(stage, f.name) for f in fields(stage) if getattr(stage, f.name) != f.default})
        stages.append(line)
    document.add("stages", stages)
    for section, values in data.items():
        table = tomlkit.table()
        table.update({k: "none" if v is None else v for k, v in values.items() if k != "stages"})
        document.add(section, table)
    return tomlkit.dumps(document)


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
            raise ConfigError(
                f"--set {reprlib.repr(setting)} is not of the form section.key=value, such as train.batch_size=32"
            )
        for table in _tables_of(data, section):
            table[name] = _parse_value(text.strip())
        config_from_dict(data)  # each must fit, or the next one may have no table to change
    return config_from_dict(data)


def _tables_of(data: dict[str, Any], section: str) -> list[dict[str, Any]]:
    if section in data:
        return [data[section]]
    stages = [(f"stage{stage['resolution']}", stage) for stage in data["model"]["stages"]]
    found = [stage for name, stage in stages if section in ("stage", name)]
    if not found:
        raise ConfigError(f"unknown section {section!r}{nearest(section, [*data, 'stage', *dict(stages)])}")
    return found


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # no TOML, too many digits, or too many brackets
        return text
