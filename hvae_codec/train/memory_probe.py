"""Tries a step before the first one: one that does not fit into the GPU's memory is refused, and what fits is named."""

from __future__ import annotations

import gc
from dataclasses import replace

import torch

from ..config import Config
from ..distributed import DistributedContext
from ..errors import TrainingError, is_gpu_out_of_memory
from ..model.hvae import HVAE
from ..model.keyed_noise import noise_dims, noise_of
from .accumulation import numbers_of_parts
from .optimizer import FlatOptimizer
from .schedules import StepNumbers
from .update import make_network, update


def available_memory(device: torch.device) -> int | None:
    """Count the bytes that this process can have on a GPU, what it has already included; None elsewhere."""
    if device.type != "cuda":
        return None
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)


def check_memory(
    model: HVAE,
    optimizer: FlatOptimizer,
    config: Config,
    processes: DistributedContext,
    available: int,
    *,
    recorded: bool = False,
) -> None:
    """Raise `TrainingError` if a step of `config` does not fit into `available` bytes, saying what would.

    A part of a step is computed on black images, up to the update, which is left out: weights, average, moments and
    counters stay, and no random number is drawn. That is all if it fits. If it does not, smaller parts are tried, and
    activations computed twice; the model must then not be trained. `recorded`: whether the noise of all parts is kept.
    """
    train, own = config.train, config.train.batch_size // processes.world_size
    trial = _Trial(model, optimizer, config, processes, noise_rows=own if recorded else 0)
    if trial.fits(own // train.accumulate):
        return
    smaller = [parts for parts in numbers_of_parts(own) if parts > train.accumulate]
    stored = next((parts for parts in smaller if trial.fits(own // parts)), None)
    twice = None
    if not train.checkpoint_activations:
        trial.checkpoint_activations()
        fewer = [train.accumulate, *(parts for parts in smaller if stored is None or parts < stored)]
        twice = next((parts for parts in fewer if trial.fits(own // parts)), None)
    least = int(processes.all_reduce_min(torch.tensor(available)))
    raise TrainingError(_advice(config, processes, least, stored, twice))


class _Trial:
    """Steps that change nothing, on all processes alike."""

    def __init__(
        self, model: HVAE, optimizer: FlatOptimizer, config: Config, processes: DistributedContext, noise_rows: int
    ) -> None:
        self._model, self._optimizer, self._config, self._processes = model, optimizer, config, processes
        self._noise_rows = noise_rows
        # On its own, as a process may fail alone; not compiled, which takes minutes for every size.
        self._network = make_network(model, replace(config.train, compile=False))

    def checkpoint_activations(self) -> None:
        """Compute activations twice from now on."""
        self._model.checkpoint_activations()

    def fits(self, images: int) -> bool:
        """Whether every process has memory for a part of so many images."""
        full = False
        try:
            self._run(images)
        except RuntimeError as error:
            if not is_gpu_out_of_memory(error):
                raise
            full = True
        if full:
            gc.collect()  # what was computed until then may hold itself
        self._optimizer.zero_grad()
        torch.cuda.empty_cache()
        return not self._processes.any(full)

    def _run(self, images: int) -> None:
        model, optimizer, device = self._config.model, self._optimizer, self._model.device
        counters = (optimizer.skipped, optimizer.skipped_in_a_row)
        before = [counter.clone() for counter in counters]
        shape = (images, model.channels, model.image_size, model.image_size)
        pixels = torch.zeros(shape, dtype=torch.uint8, device=device)
        noise = torch.zeros(max(images, self._noise_rows), noise_dims(model), device=device)
        # A loss that is no number: its gradients leave the update out.
        numbers = StepNumbers.at(self._config, 1)._replace(kl_weight=torch.nan)
        update(self._network, optimizer, self._config, pixels, noise_of(model, noise[:images]), numbers)
        for counter, old in zip(counters, before, strict=True):
            counter.copy_(old)


def _advice(
    config: Config, processes: DistributedContext, available: int, stored: int | None, twice: int | None
) -> str:
    """Say what does not fit, and what does: so many parts with activations `stored`, or with those computed `twice`."""
    train = config.train
    parts = f" in {train.accumulate} parts" if train.accumulate > 1 else ""
    on = f" on {processes.world_size} GPUs" if processes.world_size > 1 else ""
    step = f"a step of {train.batch_size} images{on}{parts} does not fit in {available / 2**30:.1f} GiB"
    ways = []
    if stored is not None:
        ways.append(f"in {stored} parts: --set train.accumulate={stored}")
    if twice is not None:
        cut = f" in {twice} parts: --set train.accumulate={twice}" if twice != train.accumulate else ":"
        ways.append(f"with activations computed twice{cut} --set train.checkpoint_activations=true")
    if not ways:
        return f"{step}, and neither does one of an image at a time; take a GPU with more memory, or a smaller model"
    return f"{step}; it fits {', or '.join(ways)}"
