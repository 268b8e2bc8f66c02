"""Reads the published models' `.cfg` files: INI whose values are literals and simple expressions, never `eval`."""

from __future__ import annotations

import ast
import configparser
import math
import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import Config, LossConfig, ModelConfig, OptimizerConfig, StageConfig, TrainConfig, nearest
from ..errors import ConfigError
from ..text_files import read_text

# A short text must not be able to fill the memory or the day.
_LONGEST = 10_000  # characters of a value, and numbers in a list
_LARGEST_NUMBER = 2**63
_LARGEST_FILE = 1_000_000
_MOST_LAYERS = 100_000

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}

# Section and kind of value -> keys. `any` values are not used here.
_SCHEMA = {
    "run any": "name seed num_gpus num_cpus max_allowed_checkpoints num_nodes world_size rank",
    "data word": "dataset_source",
    "data whole": "target_res channels num_bits",
    "data flag": "random_horizontal_flip",
    "data any": "train_data_path val_data_path synthesis_data_path",
    "model flag": "stable_init initialize_prior_weights_as_zero use_1x1_conv use_residual_distribution",
    "model word": "distribution_base output_distribution_base",
    "model number": "gradient_smoothing_beta output_gradient_smoothing_beta",
    "model whole": "input_conv_filters num_output_mixtures",
    "model wholes": "input_kernel_size output_kernel_size up_strides up_n_blocks_per_res up_n_blocks up_n_layers "
    "up_filters up_kernel_size up_skip_filters down_strides down_n_blocks_per_res down_n_blocks down_n_layers "
    "down_filters down_kernel_size down_latent_variates",
    "model numbers": "up_mid_filters_ratio down_mid_filters_ratio",
    "loss number": "min_mol_logscale vae_beta_min vae_beta_growth_rate",
    "loss word": "variation_schedule",
    "loss whole": "vae_beta_anneal_start vae_beta_anneal_steps vae_beta_activation_steps gamma_max_steps",
    "loss flag": "use_gamma_schedule scaled_gamma",
    "loss any": "use_weight_decay l2_weight",
    "metrics any": "latent_active_threshold",
    "optimizer word": "type learning_rate_scheme",
    "optimizer number": "learning_rate warmup_steps min_learning_rate beta1 beta2 epsilon gradient_clip_norm_value "
    "gradient_skip_threshold",
    "optimizer whole": "decay_steps decay_start",
    "optimizer flag": "clip_gradient_norm gradient_skip",
    "optimizer any": "decay_rate",
    "init any": "batch_size",
    "train whole": "total_train_steps batch_size",
    "train number": "ema_decay",
    "train any": "resume_from_ema logging_interval_in_steps checkpoint_and_eval_interval_in_steps",
    "val any": "n_samples_for_validation batch_size",
    "synthesis any": "synthesis_mode load_ema_weights variate_masks_quantile save_target_in_reconstruction "
    "mask_reconstruction div_stats_subset_ratio n_generation_batches temperature_settings output_temperature "
    "batch_size",
}


def evaluate(text: str) -> Any:
    """Evaluate a literal, arithmetic on literals and lists, or a bare word (a string).

    >>> evaluate("[16] * 2 + [24]"), evaluate("1e-3"), evaluate("symmetric")
    ([16, 16, 24], 0.001, 'symmetric')

    Raises `ConfigError` on anything else (calls, attributes, subscripts), and on values that are too large.
    """
    if len(text) > _LONGEST:
        raise ConfigError(f"a value of {len(text)} characters is longer than {_LONGEST}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a backslash in a path is no concern here
            tree = ast.parse(text.strip(), mode="eval").body
        return tree.id if isinstance(tree, ast.Name) else _evaluate_node(tree)
    except (SyntaxError, ValueError, MemoryError):
        raise ConfigError(f"{text!r:.100} is not a literal or arithmetic on literals and lists") from None
    except (TypeError, ZeroDivisionError, OverflowError, RecursionError):
        raise ConfigError(f"{text!r:.100} is not arithmetic that has a value") from None


def _evaluate_node(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str | bool | None):
        return _bounded(node.value)
    if isinstance(node, ast.List | ast.Tuple):
        return _bounded([_evaluate_node(item) for item in node.elts])
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_evaluate_node(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _apply(type(node.op), _evaluate_node(node.left), _evaluate_node(node.right))
    raise ConfigError(f"{ast.unparse(node)!r:.100} is not a literal or arithmetic on literals and lists")


def _apply(kind: type[ast.operator], left: Any, right: Any) -> Any:
    if kind is ast.Mult:  # checked before the memory is filled
        for sequence, times in ((left, right), (right, left)):
            if isinstance(sequence, list | str) and isinstance(times, int):
                _check_length(_entries(sequence) * times)
    return _bounded(_BINARY[kind](left, right))


def _bounded(value: Any) -> Any:
    if isinstance(value, int) and abs(value) > _LARGEST_NUMBER:
        raise ConfigError(f"a number above {_LARGEST_NUMBER} is too large")
    _check_length(_entries(value))
    return value


def _check_length(entries: int) -> None:
    if entries > _LONGEST:
        raise ConfigError(f"a list of {entries} entries is longer than {_LONGEST}")


def _entries(value: Any) -> int:
    """Count values in a list and in the lists in it, or characters; at least 1."""
    if isinstance(value, list):
        return max(1, sum(_entries(item) for item in value))
    return max(1, len(value)) if isinstance(value, str) else 1


def read_published_config(path: Path) -> Config:
    """Read a published `.cfg` file, as this project's stages.

    Raises `ConfigError` on a file that is missing or no such configuration, and on a design that no stages describe.
    """
    parser = configparser.ConfigParser(interpolation=None)
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ConfigError(f"{path} is too large for a configuration; is it the checkpoint?")
        parser.read_string(read_text(path))
    except configparser.MissingSectionHeaderError:
        raise ConfigError(
            f"cannot read the configuration {path}: it has no [sections]; give the checkpoint's own"
        ) from None
    except (OSError, ValueError, configparser.Error) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"cannot read the configuration {path}: {reason[:200]}") from None
    try:
        return _to_config({name: _read_section(name, parser[name]) for name in parser.sections()})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except KeyError as error:
        raise ConfigError(f"{path}: the key {error.args[0]} is missing") from None


def _read_section(name: str, section: Mapping[str, str]) -> dict[str, Any]:
    kinds: dict[str, dict[str, str]] = {}
    for heading, keys in _SCHEMA.items():
        of_section, kind = heading.split()
        kinds.setdefault(of_section, {}).update(dict.fromkeys(keys.split(), kind))
    if name not in kinds:
        raise ConfigError(f"unknown section [{name}]{nearest(name, list(kinds))}")
    values = {}
    for key, text in section.items():
        if key not in kinds[name]:
            raise ConfigError(f"unknown key {key} in [{name}]{nearest(key, list(kinds[name]))}")
        try:
            values[key] = _of_kind(kinds[name][key], evaluate(text))
        except ConfigError as error:
            raise ConfigError(f"[{name}] {key}: {error}") from None
    return values


def _of_kind(kind: str, value: Any) -> Any:
    """Convert `value` to the kind its key asks for; whole numbers may have a point, lists may be one value."""
    if kind == "any" or (kind == "word" and isinstance(value, str)) or (kind == "flag" and isinstance(value, bool)):
        return value
    if kind in ("wholes", "numbers"):
        return [_of_kind(kind[:-1], item) for item in (value if isinstance(value, list) else [value])]
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if number and kind == "number":
        return float(value)
    if number and kind == "whole" and value == int(value):
        return int(value)
    names = {"word": "a word", "flag": "True or False", "number": "a finite number", "whole": "a whole number"}
    raise ConfigError(f"{value!r:.100} is not {names[kind]}")


def _to_config(cfg: Mapping[str, dict[str, Any]]) -> Config:
    for name in ("data", "model", "loss", "optimizer", "train"):
        if name not in cfg:
            raise ConfigError(f"the section [{name}] is missing; give a .cfg file of a published model")
    return Config(
        model=_model(cfg["data"], cfg["model"], cfg["loss"]),
        optimizer=_optimizer(cfg["optimizer"]),
        loss=_loss(cfg["loss"]),
        train=TrainConfig(
            steps=cfg["train"]["total_train_steps"],
            batch_size=cfg["train"]["batch_size"],
            ema_decay=cfg["train"]["ema_decay"],
            horizontal_flip=cfg["data"]["random_horizontal_flip"],
        ),
    )


def _model(data: dict[str, Any], model: dict[str, Any], loss: dict[str, Any]) -> ModelConfig:
    binarised = data["dataset_source"] == "binarized_mnist"
    return ModelConfig(
        resolution=data["target_res"],
        channels=data["channels"],
        bits=data["num_bits"],
        stages=_stages(data["target_res"], model),
        output="bernoulli" if binarised else "logistic_mixture",
        mixtures=model["num_output_mixtures"],
        bins="published",
        output_scale=model["output_distribution_base"],
        output_beta=model["output_gradient_smoothing_beta"],
        min_output_logscale=loss["min_mol_logscale"],
        posterior_scale=model["distribution_base"],
        posterior_beta=model["gradient_smoothing_beta"],
        residual_distribution=model["use_residual_distribution"],
        input_kernel=_one(model["input_kernel_size"], "input_kernel_size"),
        output_kernel=_one(model["output_kernel_size"], "output_kernel_size"),
        cells_per_block=_one([*model["up_n_blocks"], *model["down_n_blocks"]], "up_n_blocks and down_n_blocks"),
        middle_layers=_one([*model["up_n_layers"], *model["down_n_layers"]], "up_n_layers and down_n_layers"),
        pointwise_ends=model["use_1x1_conv"],
        stable_init=model["stable_init"],
        zero_prior_weights=model["initialize_prior_weights_as_zero"],
    )


def _one(values: list[int], name: str) -> int:
    """Find the single value that a list repeats."""
    if len(set(values)) != 1:
        raise ConfigError(f"{name} must all be equal, and hold {sorted(set(values))}; other designs cannot be imported")
    return values[0]


def _stages(resolution: int, model: dict[str, Any]) -> tuple[StageConfig, ...]:
    """Group the per-block lists, given in execution order, into stages."""
    blocks = _linked_blocks(resolution, model)
    _check_depth(model)
    stages: list[StageConfig] = []
    extras = zip(model["up_n_blocks_per_res"], model["down_n_blocks_per_res"][::-1], strict=True)
    for block, (before, after) in zip(blocks, extras, strict=True):
        last = stages[-1] if stages else None
        if last is None or _shape(block) != _shape(last) or before or (after and last.extra_top_down):
            stages.append(replace(block, extra_bottom_up=before, extra_top_down=after))
            continue
        stages[-1] = replace(
            last,
            linked_blocks=last.linked_blocks + 1,
            extra_top_down=after or last.extra_top_down,
            # Counted from the other end: each further block is one more before it.
            extra_top_down_after=last.extra_top_down_after + 1 if last.extra_top_down else 0,
        )
    return tuple(stages)


def _shape(stage: StageConfig) -> tuple[float, ...]:
    return stage.resolution, stage.width, stage.variates, stage.kernel, stage.bottleneck


def _check_depth(model: dict[str, Any]) -> None:
    """Refuse depths that no model has, and that would take for ever to build."""
    for path in ("up", "down"):
        blocks = len(model[f"{path}_strides"]) + sum(model[f"{path}_n_blocks_per_res"])
        layers = blocks * max(model[f"{path}_n_blocks"]) * (2 + max(model[f"{path}_n_layers"]))
        if layers > _MOST_LAYERS:
            key = f"{path}_n_blocks_per_res"
            raise ConfigError(f"[model] {key} asks for {layers} layers; at most {_MOST_LAYERS} are read")


def _linked_blocks(resolution: int, model: dict[str, Any]) -> list[StageConfig]:
    """Make a stage of each linked block, in bottom-up order."""
    strides = model["up_strides"]
    if not strides:
        raise ConfigError("[model] up_strides is empty; a model has at least one linked block")
    for key in model:
        if key.startswith(("up_", "down_")) and len(model[key]) != len(strides):
            entries = f"{len(model[key])} entries, up_strides {len(strides)}"
            raise ConfigError(f"[model] {key} has {entries}; they must be equal")
    if strides != model["down_strides"][::-1] or strides[-1] != 1:
        raise ConfigError("[model] up_strides must be down_strides reversed and end in 1; others cannot be imported")
    widths = [model["input_conv_filters"], *model["up_filters"][:-1]]
    kernels, bottlenecks = model["up_kernel_size"], model["up_mid_filters_ratio"]
    _check_mirrored("up_skip_filters", widths, model["up_skip_filters"])
    for key, expected in (("filters", widths), ("kernel_size", kernels), ("mid_filters_ratio", bottlenecks)):
        _check_mirrored(f"down_{key}", expected, model[f"down_{key}"][::-1])
    blocks = []
    for width, variates, kernel, bottleneck, stride in zip(
        widths, model["down_latent_variates"][::-1], kernels, bottlenecks, strides, strict=True
    ):
        blocks.append(StageConfig(resolution, width, variates, kernel, bottleneck))
        if stride < 1 or resolution % stride:
            raise ConfigError(f"[model] up_strides: {stride} does not divide the resolution {resolution}")
        resolution //= stride
    return blocks


def _check_mirrored(key: str, bottom_up: list[float], values: list[float]) -> None:
    for i, (expected, found) in enumerate(zip(bottom_up, values, strict=True)):
        if expected != found:
            of_block = f"linked block {i} of the bottom-up path has {expected}, this {found}"
            raise ConfigError(f"[model] {key}: {of_block}; both paths must agree in every stage")


def _loss(loss: dict[str, Any]) -> LossConfig:
    schedule = loss["variation_schedule"].lower()
    if schedule not in ("linear", "logistic", "none"):
        raise ConfigError(f"[loss] variation_schedule is {schedule!r}; known: Linear, Logistic, None")
    return LossConfig(
        kl_schedule="constant" if schedule == "none" else schedule,
        anneal_start=loss["vae_beta_anneal_start"],
        anneal_steps=loss["vae_beta_anneal_steps"],
        beta_min=loss["vae_beta_min"],
        activation_step=loss["vae_beta_activation_steps"],
        growth_rate=loss["vae_beta_growth_rate"],
        balance_groups=loss["use_gamma_schedule"],
        balance_steps=loss["gamma_max_steps"],
        balance_by_size=loss["scaled_gamma"],
    )


def _optimizer(optimizer: dict[str, Any]) -> OptimizerConfig:
    name, schedule = optimizer["type"].lower(), optimizer["learning_rate_scheme"]
    if name not in ("adamax", "adam") or schedule not in ("cosine", "constant"):
        raise ConfigError(f"[optimizer] {name} with {schedule!r} rate; known: Adamax, Adam; cosine, constant")
    same = (
        "learning_rate",
        "warmup_steps",
        "decay_start",
        "decay_steps",
        "min_learning_rate",
        "beta1",
        "beta2",
        "epsilon",
    )
    return OptimizerConfig(
        name=name,
        schedule=schedule,
        skip_threshold=optimizer["gradient_skip_threshold"] if optimizer["gradient_skip"] else None,
        clip_norm=optimizer["gradient_clip_norm_value"] if optimizer["clip_gradient_norm"] else None,
        **{key: optimizer[key] for key in same},
    )
