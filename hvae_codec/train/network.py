"""The model as a step calls it: compiled, checkpointed, in bfloat16 and synchronised, as the configuration says."""

from __future__ import annotations

from torch import Tensor

from ..config import TrainConfig
from ..distributed import DistributedContext
from ..model.hvae import HVAE, Noise, Terms
from ..model.precision import autocast, resolve_precision
from .update import Network


def make_network(model: HVAE, config: TrainConfig, processes: DistributedContext | None = None) -> Network:
    """`model` prepared for training, its gradients averaged over `processes`; validation must use another one."""
    processes = processes or DistributedContext(device=model.device.type)
    if config.checkpoint_activations:
        model.checkpoint_activations()
    if config.compile:
        model.compile_parts()
    synchronised = processes.synchronised(model)
    precision = resolve_precision(config.precision, model.device.type)

    def network(images: Tensor, noise: Noise) -> Terms:
        with autocast(precision, model.device.type):
            terms: Terms = synchronised(images, noise)
        return terms

    return network
