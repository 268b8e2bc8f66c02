"""Reads the published models' `.cfg` files: INI whose values are literals and simple expressions, never `eval`."""

from __future__ import annotations

import ast
import configparser
import math
import operator
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..config import Config, LossConfig, ModelConfig, OptimizerConfig, StageConfig, TrainConfig, nearest
from ..errors import ConfigError

# A short text must not be able to fill the memory or the day.
_LONGEST_TEXT = 10_000
_LONGEST_LIST = 10_000
_LARGEST_NUMBER = 2**63
_LARGEST_FILE = 1_000_000
_MOST_LAYERS = 100_000

_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}

# Section -> kind of value -> keys. `any` values are not used here.
_SCHEMA: dict[str, dict[str, str]] = {
    "run": {"any": "name seed num_gpus num_cpus max_allowed_checkpoints num_nodes world_size rank"},
    "data": {
        "word": "dataset_source",
        "whole": "target_res channels num_bits",
        "flag": "random_horizontal_flip",
        "any": "train_data_path val_data_path synthesis_data_path",
    },
    "model": {
        "flag": "stable_init initialize_prior_weights_as_zero use_1x1_conv use_residual_distribution",
        "word": "distribution_base output_distribution_base",
        "number": "gradient_smoothing_beta output_gradient_smoothing_beta",
        "whole": "input_conv_filters num_output_mixtures",
        "wholes": "input_kernel_size output_kernel_size up_strides up_n_blocks_per_res up_n_blocks up_n_layers "
        "up_filters up_kernel_size up_skip_filters down_strides down_n_blocks_per_res down_n_blocks down_n_layers "
        "down_filters down_kernel_size down_latent_variates",
        "numbers": "up_mid_filters_ratio down_mid_filters_ratio",
    },
    "loss": {
        "number": "min_mol_logscale vae_beta_min vae_beta_growth_rate",
        "word": "variation_schedule",
        "whole": "vae_beta_anneal_start vae_beta_anneal_steps vae_beta_activation_steps gamma_max_steps",
        "flag": "use_gamma_schedule scaled_gamma",
        "any": "use_weight_decay l2_weight",
    },
    "metrics": {"any": "latent_active_threshold"},
    "optimizer": {
        "word": "type learning_rate_scheme",
        "number": "learning_rate warmup_steps min_learning_rate beta1 beta2 epsilon gradient_clip_norm_value "
        "gradient_skip_threshold",
        "whole": "decay_steps decay_start",
        "flag": "clip_gradient_norm gradient_skip",
        "any": "decay_rate",
    },
    "init": {"any": "batch_size"},
    "train": {
        "whole": "total_train_steps batch_size",
        "number": "ema_decay",
        "any": "resume_from_ema logging_interval_in_steps checkpoint_and_eval_interval_in_steps",
    },
    "val": {"any": "n_samples_for_validation batch_size"},
    "synthesis": {
        "any": "synthesis_mode load_ema_weights variate_masks_quantile save_target_in_reconstruction "
        "mask_reconstruction div_stats_subset_ratio n_generation_batches temperature_settings output_temperature "
        "batch_size"
    },
}


def evaluate(text: str) -> Any:
    """Evaluate a literal, arithmetic on literals and lists, or a bare word (a string).

    >>> evaluate("[16] * 2 + [24]"), evaluate("1e-3"), evaluate("symmetric")
    ([16, 16, 24], 0.001, 'symmetric')

    Raises `ConfigError` on anything else (names in expressions, calls, attributes, subscripts), and on values that are
    too large.
    """
    if len(text) > _LONGEST_TEXT:
        raise ConfigError(f"a value of {len(text)} characters is longer than {_LONGEST_TEXT}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a backslash in a path is no concern here
            tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ConfigError(f"{_shown(text)} is not a literal or arithmetic on literals and lists") from None
    if isinstance(tree, ast.Name):
        return tree.id
    try:
        return _evaluate_node(tree)
    except (TypeError, ZeroDivisionError, OverflowError, RecursionError):
        raise ConfigError(f"{_shown(text)} is not arithmetic that has a value") from None


def _evaluate_node(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str | bool | None):
        return _bounded(node.value)
    if isinstance(node, ast.List | ast.Tuple):
        return _bounded([_evaluate_node(item) for item in node.elts])
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _evaluate_node(node.operand)
        return -value if isinstance(node.op, ast.USub) else +value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _apply(type(node.op), _evaluate_node(node.left), _evaluate_node(node.right))
    raise ConfigError(f"{_shown(ast.unparse(node))} is not a literal or arithmetic on literals and lists")


def _apply(kind: type[ast.operator], left: Any, right: Any) -> Any:
    for sequence, times in ((left, right), (right, left)):
        if kind is ast.Mult and isinstance(sequence, list | str) and isinstance(times, int):
            _check_length(_entries(sequence) * times)
    return _bounded(_OPERATORS[kind](left, right))


def _bounded(value: Any) -> Any:
    if isinstance(value, list | str):
        _check_length(_entries(value))
    elif isinstance(value, int) and abs(value) > _LARGEST_NUMBER:
        raise ConfigError(f"a number above {_LARGEST_NUMBER} is too large")
    return value


def _check_length(entries: int) -> None:
    if entries > _LONGEST_LIST:
        raise ConfigError(f"a list of {entries} entries is longer than {_LONGEST_LIST}")


def _entries(value: Any) -> int:
    """Count values in a list and in the lists in it, or characters; at least 1."""
    if isinstance(value, list):
        return max(1, sum(_entries(item) for item in value))
    return max(1, len(value)) if isinstance(value, str) else 1


def _shown(value: Any) -> str:
    """Write `value` for an error sentence, cut off if it is long."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def read_published_config(path: Path) -> Config:
    """Read a published `.cfg` file, as this project's stages.

    Raises `ConfigError` on a missing file, an unknown section or key, an expression that is not arithmetic on
    literals, and on a design that no list of stages describes.
    """
    parser = configparser.ConfigParser(interpolation=None)
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ConfigError(f"{path} is too large for a configuration; is it the checkpoint?")
        parser.read_string(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"cannot read the configuration {path}: {reason[:200]}") from None
    try:
        sections = {name: _read_section(name, parser[name]) for name in parser.sections()}
        return _to_config(sections)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except KeyError as error:
        raise ConfigError(f"{path}: the key {error.args[0]} is missing") from None


def _read_section(name: str, section: Mapping[str, str]) -> dict[str, Any]:
    if name not in _SCHEMA:
        raise ConfigError(f"unknown section [{name}]{nearest(name, list(_SCHEMA))}")
    kinds = {key: kind for kind, keys in _SCHEMA[name].items() for key in keys.split()}
    values = {}
    for key, text in section.items():
        if key not in kinds:
            raise ConfigError(f"unknown key {key} in [{name}]{nearest(key, list(kinds))}")
        try:
            values[key] = _of_kind(kinds[key], evaluate(text))
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
    raise ConfigError(f"{_shown(value)} is not {names[kind]}")


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
    up_extra = model["up_n_blocks_per_res"]
    down_extra = model["down_n_blocks_per_res"][::-1]
    stages: list[dict[str, Any]] = []
    for block, before, after in zip(blocks, up_extra, down_extra, strict=True):
        stage = stages[-1] if stages else None
        same = stage is not None and block.items() <= stage.items()
        if stage is None or not same or before or (after and stage["extra_top_down"]):
            stage = {**block, "linked_blocks": 0, "extra_bottom_up": before, "extra_top_down": 0, "position": 0}
            stages.append(stage)
        if after:
            stage.update(extra_top_down=after, position=stage["linked_blocks"])
        stage["linked_blocks"] += 1
    return tuple(_stage(stage) for stage in stages)


def _check_depth(model: dict[str, Any]) -> None:
    """Refuse depths that no model has, and that would take for ever to build."""
    for path in ("up", "down"):
        blocks = len(model[f"{path}_strides"]) + sum(model[f"{path}_n_blocks_per_res"])
        layers = blocks * max(model[f"{path}_n_blocks"]) * (2 + max(model[f"{path}_n_layers"]))
        if layers > _MOST_LAYERS:
            raise ConfigError(
                f"[model] {path}_n_blocks_per_res asks for {layers} layers; at most {_MOST_LAYERS} are read"
            )


def _stage(stage: dict[str, Any]) -> StageConfig:
    """Build a stage; `position` counts linked blocks from the bottom-up side, the field from the top-down side."""
    position = stage.pop("position")
    after = stage["linked_blocks"] - 1 - position if stage["extra_top_down"] else 0
    return StageConfig(**stage, extra_top_down_after=after)


def _linked_blocks(resolution: int, model: dict[str, Any]) -> list[dict[str, Any]]:
    """List resolution, width, kernel, bottleneck and variates of each linked block, in bottom-up order."""
    count = len(model["up_strides"])
    if count == 0:
        raise ConfigError("[model] up_strides is empty; a model has at least one linked block")
    for key in model:
        if key.startswith(("up_", "down_")) and len(model[key]) != count:
            raise ConfigError(f"[model] {key} has {len(model[key])} entries, up_strides {count}; they must be equal")
    if model["up_strides"] != model["down_strides"][::-1] or model["up_strides"][-1] != 1:
        raise ConfigError("[model] up_strides must be down_strides reversed and end in 1; others cannot be imported")
    widths = [model["input_conv_filters"], *model["up_filters"]]
    blocks = []
    for i, stride in enumerate(model["up_strides"]):
        down = count - 1 - i
        _mirrored(model, i, down, widths[i])
        blocks.append(
            {
                "resolution": resolution,
                "width": widths[i],
                "kernel": model["up_kernel_size"][i],
                "bottleneck": model["up_mid_filters_ratio"][i],
                "variates": model["down_latent_variates"][down],
            }
        )
        if stride < 1 or resolution % stride:
            raise ConfigError(f"[model] up_strides: {stride} does not divide the resolution {resolution}")
        resolution //= stride
    return blocks


def _mirrored(model: dict[str, Any], up: int, down: int, width: int) -> None:
    pairs = {
        "down_filters": (width, model["down_filters"][down]),
        "up_skip_filters": (width, model["up_skip_filters"][up]),
        "down_kernel_size": (model["up_kernel_size"][up], model["down_kernel_size"][down]),
        "down_mid_filters_ratio": (model["up_mid_filters_ratio"][up], model["down_mid_filters_ratio"][down]),
    }
    for key, (expected, found) in pairs.items():
        if expected != found:
            raise ConfigError(
                f"[model] {key}: linked block {up} of the bottom-up path has {expected}, this {found}; "
                "both paths must agree in every stage"
            )


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
    return OptimizerConfig(
        name=name,
        learning_rate=optimizer["learning_rate"],
        schedule=schedule,
        warmup_steps=optimizer["warmup_steps"],
        decay_start=optimizer["decay_start"],
        decay_steps=optimizer["decay_steps"],
        min_learning_rate=optimizer["min_learning_rate"],
        beta1=optimizer["beta1"],
        beta2=optimizer["beta2"],
        epsilon=optimizer["epsilon"],
        skip_threshold=optimizer["gradient_skip_threshold"] if optimizer["gradient_skip"] else None,
        clip_norm=optimizer["gradient_clip_norm_value"] if optimizer["clip_gradient_norm"] else None,
    )
