"""Writing the published models' `.cfg` files: the inverse of `published_config`."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from ..config import Config, ModelConfig, StageConfig
from ..errors import ConfigError

# What the published files have where clipping and skipping are off.
_UNUSED_CLIP, _UNUSED_SKIP = 300.0, 800.0


def published_config_text(config: Config, name: str) -> str:
    """The `.cfg` file of `config`, which `read_published_config` reads again; `name` is the run's.

    Keys that this project has no use for get the values of the published files. Raises `ConfigError` on a design that
    these files cannot express.
    """
    _check_expressible(config.model)
    sections = {
        "run": _run(name),
        "data": _data(config),
        "model": _model(config.model),
        "loss": _loss(config),
        "metrics": {"latent_active_threshold": 1e-4},
        "optimizer": _optimizer(config),
        "init": {"batch_size": 1},
        "train": _train(config),
        "val": {"n_samples_for_validation": 5000, "batch_size": config.train.batch_size},
        "synthesis": _synthesis(config),
    }
    return "\n\n".join(f"[{section}]\n{_lines(values)}" for section, values in sections.items()) + "\n"


def changed_settings(config: Config, read: Config) -> list[str]:
    """What `read`, the configuration after writing and reading, has otherwise, a sentence each.

    Left out is what changes nothing: stages that may be written as one or several, bins at 8 bits, and how a machine
    computes.
    """
    same = {"stages", "precision", "checkpoint_activations", "compile"}
    if config.model.bits == 8:
        same.add("bins")
    changes = []
    for section in ("model", "optimizer", "loss", "train"):
        before, after = getattr(config, section), getattr(read, section)
        for field in dataclasses.fields(before):
            values = getattr(before, field.name), getattr(after, field.name)
            if field.name not in same and values[0] != values[1]:
                changes.append(f"{section}.{field.name} is {values[0]} here, and {values[1]} when imported again")
    return changes


def _check_expressible(model: ModelConfig) -> None:
    if model.resample != "projected":
        raise ConfigError(
            f"model.resample is {model.resample}; published models pool and unpool with convolutions, so this cannot "
            "be exported"
        )
    if model.output == "logistic_mixture" and model.channels != 3:
        raise ConfigError(
            f"model.channels is {model.channels}; the published models' mixture has three colours, so this cannot be "
            "exported"
        )


def _lines(values: dict[str, Any]) -> str:
    return "\n".join(f"{key} = {_expression(value)}" for key, value in values.items())


def _expression(value: Any) -> str:
    """A value as these files have it: lists as sums of repeats, such as `[16] * 2 + [24]`."""
    if not isinstance(value, list):
        return repr(value)
    runs = [(entry, len(list(same))) for entry, same in itertools.groupby(value)]
    return " + ".join(f"[{entry!r}]" + (f" * {count}" if count > 1 else "") for entry, count in runs)


def _run(name: str) -> dict[str, Any]:
    return {"name": name, "seed": 420, "num_gpus": 1, "num_cpus": 1, "max_allowed_checkpoints": 5}


def _data(config: Config) -> dict[str, Any]:
    model = config.model
    return {
        "dataset_source": "binarized_mnist" if model.output == "bernoulli" else "custom",
        "train_data_path": "train/",
        "val_data_path": "val/",
        "synthesis_data_path": "val/",
        "target_res": model.resolution,
        "channels": model.channels,
        "num_bits": float(model.bits),
        "random_horizontal_flip": config.train.horizontal_flip,
    }


def _model(model: ModelConfig) -> dict[str, Any]:
    general = {
        "stable_init": model.stable_init,
        "initialize_prior_weights_as_zero": model.zero_prior_weights,
        "use_1x1_conv": model.pointwise_ends,
        "distribution_base": model.posterior_scale,
        "output_distribution_base": model.output_scale,
        "gradient_smoothing_beta": model.posterior_beta,
        "output_gradient_smoothing_beta": model.output_beta,
        "input_conv_filters": model.stages[0].width,
        "input_kernel_size": (model.input_kernel, model.input_kernel),
        "use_residual_distribution": model.residual_distribution,
        "output_kernel_size": (model.output_kernel, model.output_kernel),
        "num_output_mixtures": model.mixtures,
    }
    return general | _bottom_up(model) | _top_down(model)


def _bottom_up(model: ModelConfig) -> dict[str, Any]:
    """Lists with one entry a linked block, from the highest resolution to the lowest."""
    stages = _stage_of_each(model.stages)
    count, widths = len(stages), [stage.width for stage in stages]
    return {
        "up_strides": _strides(stages),
        "up_n_blocks_per_res": [s.extra_bottom_up if first else 0 for s, first, _ in _linked_blocks(model.stages)],
        "up_n_blocks": [model.cells_per_block] * count,
        "up_n_layers": [model.middle_layers] * count,
        "up_filters": [*widths[1:], widths[-1]],  # after the pool
        "up_mid_filters_ratio": [stage.bottleneck for stage in stages],
        "up_kernel_size": [stage.kernel for stage in stages],
        "up_skip_filters": widths,
    }


def _top_down(model: ModelConfig) -> dict[str, Any]:
    """The same from the lowest resolution to the highest."""
    stages = _stage_of_each(model.stages)[::-1]
    count = len(stages)
    return {
        "down_strides": _strides(stages[::-1])[::-1],
        "down_n_blocks_per_res": [after for _, _, after in _linked_blocks(model.stages)][::-1],
        "down_n_blocks": [model.cells_per_block] * count,
        "down_n_layers": [model.middle_layers] * count,
        "down_filters": [stage.width for stage in stages],
        "down_mid_filters_ratio": [stage.bottleneck for stage in stages],
        "down_kernel_size": [stage.kernel for stage in stages],
        "down_latent_variates": [stage.variates for stage in stages],
    }


def _linked_blocks(stages: Sequence[StageConfig]) -> Iterator[tuple[StageConfig, bool, int]]:
    """Each linked block in bottom-up order: stage, whether it is the first of it, top-down blocks that follow it."""
    for stage in stages:
        for i in range(stage.linked_blocks):
            follows = stage.linked_blocks - 1 - i == stage.extra_top_down_after  # counted from the top-down side
            yield stage, i == 0, stage.extra_top_down if follows else 0


def _stage_of_each(stages: Sequence[StageConfig]) -> list[StageConfig]:
    return [stage for stage, _, _ in _linked_blocks(stages)]


def _strides(stages: Sequence[StageConfig]) -> list[int]:
    steps = [above.resolution // below.resolution for above, below in itertools.pairwise(stages)]
    return [*steps, 1]


def _loss(config: Config) -> dict[str, Any]:
    loss = config.loss
    return {
        "min_mol_logscale": config.model.min_output_logscale,
        "variation_schedule": {"constant": "None", "linear": "Linear", "logistic": "Logistic"}[loss.kl_schedule],
        "vae_beta_anneal_start": loss.anneal_start,
        "vae_beta_anneal_steps": loss.anneal_steps,
        "vae_beta_min": loss.beta_min,
        "vae_beta_activation_steps": loss.activation_step,
        "vae_beta_growth_rate": loss.growth_rate,
        "use_gamma_schedule": loss.balance_groups,
        "gamma_max_steps": loss.balance_steps,
        "scaled_gamma": loss.balance_by_size,
        "use_weight_decay": False,
        "l2_weight": 1e-2,
    }


def _optimizer(config: Config) -> dict[str, Any]:
    optimizer = config.optimizer
    clip, skip = optimizer.clip_norm, optimizer.skip_threshold
    return {
        "type": {"adamax": "Adamax", "adam": "Adam"}[optimizer.name],
        "learning_rate_scheme": optimizer.schedule,
        "learning_rate": optimizer.learning_rate,
        "warmup_steps": optimizer.warmup_steps,
        "decay_steps": optimizer.decay_steps,
        "decay_start": optimizer.decay_start,
        "min_learning_rate": optimizer.min_learning_rate,
        "decay_rate": 0.5,
        "beta1": optimizer.beta1,
        "beta2": optimizer.beta2,
        "epsilon": optimizer.epsilon,
        "clip_gradient_norm": clip is not None,
        "gradient_clip_norm_value": _UNUSED_CLIP if clip is None else clip,
        "gradient_skip": skip is not None,
        "gradient_skip_threshold": _UNUSED_SKIP if skip is None else skip,
    }


def _train(config: Config) -> dict[str, Any]:
    return {
        "total_train_steps": config.train.steps,
        "batch_size": config.train.batch_size,
        "ema_decay": config.train.ema_decay,
        "resume_from_ema": False,
        "logging_interval_in_steps": 1,
        "checkpoint_and_eval_interval_in_steps": 10_000,
    }


def _synthesis(config: Config) -> dict[str, Any]:
    return {
        "synthesis_mode": "reconstruction",
        "load_ema_weights": True,
        "variate_masks_quantile": 0.03,
        "save_target_in_reconstruction": False,
        "mask_reconstruction": False,
        "div_stats_subset_ratio": 0.2,
        "n_generation_batches": 1,
        "temperature_settings": [0.8, 1.0],
        "output_temperature": 1.0,
        "batch_size": config.train.batch_size,
    }
