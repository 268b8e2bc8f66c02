"""Reads the strings that describe a published VDVAE's blocks, and makes a configuration of its hyper-parameters.

    enc_blocks   8x2,8d2,4x1,4d4,1x3     8x2: two blocks at 8; 8d2: a block at 8, then pooling by 2; 4: one block at 4
    dec_blocks   1x1,4m1,4x2,8m4         4m1: what is at 1 is enlarged to 4 and added, then a block at 4

A stage holds the blocks of both paths at one resolution. Its linked block is the one that pools: what that is given is
the skip of all the stage's top-down blocks, and the last stage's has nothing to compute.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ..config import Config, LossConfig, ModelConfig, OptimizerConfig, StageConfig, TrainConfig
from ..errors import ConfigError
from .vdvae_hparams import VdvaeHparams

_MOST_BLOCKS = 1_000  # of a path, ten times the published: a short string must not take minutes or fill the memory
_LARGEST_NUMBER = 2**16


class _Scaling(NamedTuple):
    """How the published program scales the images of a data set for the bottom-up path."""

    mean: float  # of colour values from 0 to 255
    std: float
    bits: int = 8  # of the likelihood; the bottom-up path reads all 8


_SCALINGS: Mapping[str, _Scaling] = {
    "cifar10": _Scaling(120.63838, 64.16736),
    "imagenet32": _Scaling(116.2373, 69.37404),
    "imagenet64": _Scaling(115.92961967, 69.37404),
    "ffhq_256": _Scaling(112.8666757481, 69.84780273, bits=5),
    "ffhq_1024": _Scaling(111.8685, 69.9465),  # published as 0.4387 and 0.2743, of values from 0 to 1
}


class _Block(NamedTuple):
    """One block of a path, as an entry of a string says."""

    entry: str  # for messages
    resolution: int
    operand: int | None = None  # pooling after a bottom-up block; the resolution enlarged before a top-down block


def config_of(hparams: VdvaeHparams, *, exact_bins: bool = True, gpus: int = 1) -> Config:
    """Make the configuration of a published VDVAE; `gpus` is how many it trained on, `n_batch` images on each.

    `exact_bins` tile the line, as stores and bounds need; those of the published program overlap below 8 bits. Raises
    `ConfigError` that names the entry of a string that is no entry, or that describes no network of this core.
    """
    return Config(
        model=_model(hparams, exact_bins),
        optimizer=OptimizerConfig(
            name="adamw",
            learning_rate=hparams.lr,
            schedule="constant",
            warmup_steps=hparams.warmup_iters,
            warmup_from_zero=True,
            beta1=hparams.adam_beta1,
            beta2=hparams.adam_beta2,
            weight_decay=hparams.wd,
            skip_threshold=None if hparams.skip_threshold == -1 else hparams.skip_threshold,
            clip_norm=hparams.grad_clip,
        ),
        loss=LossConfig(kl_schedule="constant", balance_groups=False),
        train=TrainConfig(batch_size=hparams.n_batch * gpus, ema_decay=hparams.ema_rate, horizontal_flip=False),
    )


def _model(hparams: VdvaeHparams, exact_bins: bool) -> ModelConfig:
    stages, scaling = _stages(hparams), _SCALINGS.get(hparams.dataset)
    if scaling is None:
        raise ConfigError(f"dataset is {hparams.dataset!r}; it must be one of {', '.join(_SCALINGS)}")
    resolution = stages[0].resolution
    return ModelConfig(
        resolution=resolution,
        stages=stages,
        bits=scaling.bits,
        mixtures=hparams.num_mixtures,
        bins="exact" if exact_bins else "published",
        output_scale="logstd",
        output_beta=1.0,
        min_output_logscale=-7.0,
        posterior_scale="logstd",
        posterior_beta=1.0,
        resample="plain",
        input_kernel=3,
        zero_prior_weights=True,
        activation="gelu",
        skips="raw",
        heads="direct",
        largest_start=hparams.no_bias_above if hparams.no_bias_above < resolution else None,
        output_gain=True,
        init="uniform",
        input_bits=None if scaling.bits == 8 else 8,
        input_mean=scaling.mean,
        input_std=scaling.std,
        open_highest_bin=scaling.bits == 8,
    )


def _stages(hparams: VdvaeHparams) -> tuple[StageConfig, ...]:
    """Join the blocks of both paths that are at one resolution, from the highest resolution to the lowest."""
    bottom_up = _bottom_up_blocks(_blocks("enc_blocks", hparams.enc_blocks, "d"))
    top_down = _top_down_blocks(_blocks("dec_blocks", hparams.dec_blocks, "m"), list(bottom_up))
    _check_starts(hparams.no_bias_above, top_down)
    widths = _widths(hparams, bottom_up)
    lowest, stages = min(bottom_up), []
    for resolution, blocks in bottom_up.items():
        linked = min(1, top_down.get(resolution, 0))
        pooling = int(bool(linked) and resolution != lowest)  # the linked block is counted apart
        stage = StageConfig(
            resolution,
            widths[resolution],
            hparams.zdim,
            kernel=3 if resolution > 2 else 1,
            bottleneck=hparams.bottleneck_multiple,
            linked_blocks=linked,
            extra_bottom_up=blocks - pooling,
            extra_top_down=max(0, top_down.get(resolution, 0) - 1),
        )
        stages.append(stage)
    return tuple(stages)


def _blocks(key: str, text: str, letter: str) -> list[_Block]:
    """Read the blocks that the entries of `text` stand for; `letter` is that of an operand in this path."""
    blocks: list[_Block] = []
    for entry in text.split(","):
        where, found = f"{key}: the entry {entry!r:.40}", re.fullmatch(r"([0-9]{1,9})(?:([a-z])([0-9]{1,9}))?", entry)
        if found is None or found[2] not in ("x", letter, None):
            raise ConfigError(f"{where} is none; give R, RxN or R{letter}K, such as 8, 8x2 or 8{letter}4")
        resolution, number = int(found[1]), int(found[3] or 1)
        if not (0 < resolution <= _LARGEST_NUMBER and number):
            raise ConfigError(f"{where} has a number that is not possible; it must be 1 to {_LARGEST_NUMBER:,}")
        operand = number if found[2] == letter else None
        count = number if operand is None else 1
        if len(blocks) + count > _MOST_BLOCKS:
            raise ConfigError(f"{where} makes more than {_MOST_BLOCKS:,} blocks; no network has so many")
        blocks += [_Block(where, resolution, operand)] * count
    return blocks


def _bottom_up_blocks(blocks: Sequence[_Block]) -> dict[int, int]:
    """Count the blocks at each resolution that the path reaches, in its order."""
    now = blocks[0].resolution
    counts = {now: 0}
    for entry, resolution, stride in blocks:
        if resolution != now:
            raise ConfigError(f"{entry} is not at resolution {now}, to which the entries before it lead")
        counts[now] += 1
        if stride is not None:
            if resolution % stride:
                raise ConfigError(f"{entry} pools by {stride}, which does not divide its resolution")
            now = resolution // stride
            counts.setdefault(now, 0)
    return counts


def _top_down_blocks(blocks: Sequence[_Block], reached: Sequence[int]) -> dict[int, int]:
    """Count the blocks at each resolution, in the path's order; `reached` are those of the bottom-up path."""
    counts: dict[int, int] = {}
    now: int | None = None
    for entry, resolution, enlarged in blocks:
        if resolution not in reached:
            raise ConfigError(f"{entry} is at a resolution that enc_blocks does not reach; it has {_listed(reached)}")
        if resolution == now:
            if enlarged is not None:
                raise ConfigError(f"{entry} is not the first at its resolution, and only that can enlarge another here")
        else:
            _check_first(entry, resolution, enlarged, now)
        counts[resolution] = counts.get(resolution, 0) + 1
        now = resolution
    if now != reached[0]:
        raise ConfigError(f"dec_blocks ends at resolution {now}; it must end at the image's, {reached[0]}")
    return counts


def _check_first(entry: str, resolution: int, enlarged: int | None, below: int | None) -> None:
    """Raise `ConfigError` if the first block at a resolution does not enlarge that of the blocks before it, `below`."""
    if below is None:
        if enlarged is not None:
            raise ConfigError(f"{entry} is the first, with nothing before it to enlarge; give {resolution}")
    elif resolution < below:
        raise ConfigError(
            f"{entry} goes back to a lower resolution; here a network only goes up, other ones cannot be imported"
        )
    elif enlarged != below:
        raise ConfigError(
            f"{entry} does not continue the blocks before it, as {resolution}m{below} does; others cannot be imported"
        )
    elif resolution % below:
        raise ConfigError(f"{entry} enlarges resolution {below}, and its own is no multiple of that")


def _check_starts(largest: int, top_down: Mapping[int, int]) -> None:
    if largest < min(top_down):
        raise ConfigError(f"no_bias_above is {largest}; the lowest resolution, {min(top_down)}, needs a learned start")


def _widths(hparams: VdvaeHparams, reached: Mapping[int, int]) -> dict[int, int]:
    """Find the width at each resolution, which must not fall on the way down."""
    widths = dict.fromkeys(reached, hparams.width) | dict(_own_widths(hparams.custom_width_str))
    image = next(iter(reached))
    if widths[image] != hparams.width:
        raise ConfigError(
            f"custom_width_str gives {widths[image]} at the image's resolution; it must be width, {hparams.width}"
        )
    for above, below in itertools.pairwise(reached):
        if widths[above] > widths[below]:
            raise ConfigError(
                f"the width at resolution {above} is {widths[above]}, at {below} {widths[below]}; it must not fall, as "
                "channels are only ever added on the way down"
            )
    return widths


def _own_widths(text: str) -> Iterator[tuple[int, int]]:
    for entry in text.split(",") if text else ():
        found = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", entry)
        if found is None:
            raise ConfigError(f"custom_width_str: the entry {entry!r:.40} is none; give R:W, such as 64:512")
        yield int(found[1]), int(found[2])


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
