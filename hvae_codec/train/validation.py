"""Validation: mean rate and distortion of held-out images, whatever the batch size and the number of processes."""

from __future__ import annotations

import torch

from ..data.sources import ImageSource
from ..distributed import DistributedContext
from ..model.hvae import HVAE, Elbo
from ..model.keyed_noise import keyed_noise
from ..model.precision import full_float32


@torch.no_grad()
@full_float32()
def validate(
    model: HVAE,
    source: ImageSource,
    batch_size: int,
    seed: int,
    images: int,
    processes: DistributedContext | None = None,
) -> Elbo:
    """Average rate and distortion (bits/dim, float64 scalars) over at most `images` images of `source`, evenly spaced.

    Each image counts once and has its own noise, always the same; every process takes its share of them.
    """
    processes = processes or DistributedContext()
    chosen = source.evenly(images)
    positions = range(len(chosen))[processes.rank :: processes.world_size]
    own = chosen.subset(positions)
    total = torch.zeros(2, dtype=torch.float64, device=model.device)
    for number, batch in enumerate(own.batches(batch_size)):
        first = number * batch_size
        # Training has step numbers from 1 in the second place.
        keys = [(seed, 0, position) for position in positions[first : first + len(batch)]]
        terms = model(torch.from_numpy(batch), keyed_noise(model.config, keys, model.device))
        total += torch.stack([terms.kl.double().sum(), terms.nll.double().sum()])
    rate, distortion = processes.all_reduce_sum(total) / (len(chosen) * model.nats_per_bit_dim)
    return Elbo(rate, distortion)
