"""What training will take: steps, epochs, memory of the images, and time, told by a few steps that are really taken.

The steps are those of the configuration, on images of the source, in memory: no run is touched.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..config import Config
from ..data.sources import ImageSource
from ..distributed import DistributedContext
from ..errors import is_gpu_out_of_memory
from ..model.checkpoint import apply_pruning
from ..model.hvae import HVAE
from ..model.precision import copied_as
from ..model.recorded import GraphMode
from .batches import CACHE_BYTES
from .optimizer import FlatOptimizer
from .recorded_step import Step, make_step
from .update import make_network

STEPS = 3  # steps that are tried; the first is not counted, as it makes what the others use
SECONDS = 60.0  # that the trial may take, about


@dataclass(frozen=True, kw_only=True)
class TrainForecast:
    """What training a configuration on some images will take."""

    images: int  # for training
    batch_size: int  # images per step
    steps: int  # in all
    steps_taken: int  # of these, by an earlier command
    image_bytes: int  # of the training images' pixels
    seconds_per_step: float | None  # None if it was not tried
    not_tried: str = ""  # why it was not

    @property
    def steps_left(self) -> int:
        """Steps that this command would take."""
        return max(0, self.steps - self.steps_taken)

    @property
    def epochs(self) -> float:
        """How often each image is seen in all steps."""
        return self.steps * self.batch_size / self.images

    @property
    def cached_bytes(self) -> int:
        """Bytes of memory that hold the images; 0 if they are too many, and are read as the steps need them."""
        return self.image_bytes if self.image_bytes <= CACHE_BYTES else 0

    @property
    def seconds(self) -> float | None:
        """Seconds of the steps that are left, without validations; None if no step was tried."""
        return None if self.seconds_per_step is None else self.steps_left * self.seconds_per_step


def forecast_training(
    config: Config, training: ImageSource, device: str, steps_taken: int = 0, graph: GraphMode = "auto"
) -> TrainForecast:
    """Tell what training `config` on `training` will take; tries up to three steps if that takes less than a minute.

    Raises `DataError` if images of the first batch cannot be read.
    """
    seconds, reason = _trial(config, training, device, graph)
    return TrainForecast(
        images=len(training),
        batch_size=config.train.batch_size,
        steps=config.train.steps,
        steps_taken=steps_taken,
        image_bytes=len(training) * training.channels * training.size**2,
        seconds_per_step=seconds,
        not_tried=reason,
    )


def _trial(config: Config, training: ImageSource, device: str, graph: GraphMode) -> tuple[float | None, str]:
    """Measure the seconds of a step; or None, and why none was taken."""
    if config.train.compile:
        return None, "the model is to be compiled, which takes minutes"
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return _timed_steps(config, training, device, graph)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not is_gpu_out_of_memory(error):
            raise
        return None, "there is not enough memory for a step; try --set train.accumulate=2, 4, ..."


def _timed_steps(config: Config, training: ImageSource, device: str, graph: GraphMode) -> tuple[float | None, str]:
    model = _model(config, device)
    most = config.train.batch_size * _seconds_of_one(config, model, training)
    if STEPS * most > SECONDS:
        return None, f"one may take {most:,.0f} s, as one image tells"
    step = _step(config, model, graph)
    seconds = [_time(step, images, number) for number, images in _batches(config, training, model)]
    return min(seconds[1:]), ""


def _model(config: Config, device: str) -> HVAE:
    options: Any = {"device": device, "memory_format": torch.channels_last}
    model = HVAE(config.model).to(**options)
    apply_pruning(model, config.pruning)
    return model


def _step(config: Config, model: HVAE, graph: GraphMode) -> Step:
    """Make a step of `config` whose weights nobody keeps."""
    dtype = copied_as(config.train.precision, model.device.type)
    optimizer = FlatOptimizer(model, config.optimizer, config.train.ema_decay, dtype)
    processes = DistributedContext(device=str(model.device))
    return make_step(graph, make_network(model, config.train), optimizer, config, processes, lambda _: None)


def _seconds_of_one(config: Config, model: HVAE, training: ImageSource) -> float:
    """Measure a step of one image, the second of two."""
    one = replace(config, train=replace(config.train, batch_size=1, accumulate=1))
    step, image = _step(one, model, "off"), torch.from_numpy(training.read([0])).to(model.device)
    first = _time(step, image, 1)
    return first if first * config.train.batch_size > 100 * SECONDS else _time(step, image, 2)


def _batches(config: Config, training: ImageSource, model: HVAE) -> Iterator[tuple[int, torch.Tensor]]:
    size = config.train.batch_size
    for number in range(1, STEPS + 1):
        chosen = np.arange((number - 1) * size, number * size) % len(training)
        yield number, torch.from_numpy(training.read(chosen)).to(model.device)


def _time(step: Step, images: torch.Tensor, number: int) -> float:
    """Take step `number` on `images`; the seconds it took, until its loss is known."""
    keys = [(0, number, i) for i in range(len(images))]
    start = time.perf_counter()
    float(step(images, keys, number).loss)
    return time.perf_counter() - start
