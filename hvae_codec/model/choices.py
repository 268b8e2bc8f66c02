"""Choices of z, which callers hand to the top-down loop: posterior samples, rounded means, means, prior samples.

A pruned dimension's posterior *is* the prior. Its z is a prior sample if a bound of the whole model is estimated, and
the prior's mean where images are encoded and decoded, or where means alone are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .top_down import Choose, LatentGroup

Noise = Callable[[LatentGroup], Tensor]
"""Standard normal numbers for a group, [B, variates, H, W]."""


class KeptOfGroup(NamedTuple):
    """What a mask keeps of one latent group, if that is not all."""

    variates: Tensor  # those kept at one position at least, int64 [k]
    positions: Tensor | None  # which of their positions, bool [k, H, W]; None: all


Kept = Sequence[KeptOfGroup | None]
"""What a mask keeps of each group; None: the whole group."""


def kept_of(mask: Sequence[Tensor], device: torch.device | str) -> Kept:
    """Read a mask, per group True = keep, [variates, 1, 1] or [variates, H, W], for work on `device`.

    A mask on the host is read there: nothing waits for a GPU.
    """
    return [_kept_of_group(keep.cpu(), device) for keep in mask]


def _kept_of_group(keep: Tensor, device: torch.device | str) -> KeptOfGroup | None:
    if keep.all():
        return None
    variates = keep.flatten(1).any(dim=1).nonzero().flatten()
    positions = None if keep[variates].all() else keep[variates].to(device)
    return KeptOfGroup(variates.to(device), positions)


class RecordingChoice(Protocol):
    """Chooses z, and records something of each group: callers may run groups in parts, and continue from others'."""

    recorded: dict[int, Tensor]  # what was recorded, by group

    def __call__(self, group: LatentGroup) -> Tensor:
        """Choose z of `group`; depends on this group and the ones before, and on nothing else."""


class _Recording:
    recorded: dict[int, Tensor]

    @property
    def kl(self) -> Tensor:
        """[groups, B] nats of the groups seen so far, in order."""
        return torch.stack(list(self.recorded.values()))


@dataclass
class SampledPosterior(_Recording):
    """Chooses z from the posterior, collapsed to the prior where pruned; records each group's KL.

    A pruned dimension's z is a prior sample and its KL is exactly 0, so the bound stays a bound.
    """

    noise: Noise
    kept: Kept | None = None  # None: everything
    recorded: dict[int, Tensor] = field(default_factory=dict)  # KL of each group seen so far, [B] nats

    def __call__(self, group: LatentGroup) -> Tensor:
        """Choose z of `group`, [B, variates, H, W]."""
        kept = None if self.kept is None else self.kept[group.index]
        noise = self.noise(group)
        z, kl = group.sample_posterior(noise) if kept is None else _sample_kept(group, *kept, noise)
        self.recorded.setdefault(group.index, kl)  # a checkpointed block is run again in the backward pass
        return z


def _sample_kept(
    group: LatentGroup, variates: Tensor, positions: Tensor | None, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Sample z, [B, variates, H, W], and its KL in nats, [B]; what is pruned is of the prior."""
    z = group.prior.sample(noise)
    if not len(variates):
        return z, z.new_zeros(len(z))
    if positions is None:
        of_kept, kl = group.sample_posterior(noise[:, variates], variates)
    else:
        prior = group.prior.variates(variates)
        q = group.posterior(variates).where(positions, prior)
        of_kept, kl = q.sample(noise[:, variates]), q.kl(prior).flatten(1).sum(dim=1)
    return z.index_copy(1, variates, of_kept), kl


@dataclass
class RoundedPosterior(_Recording):
    """Chooses the posterior's mean, rounded to codes as an encoder does; records each group's code length.

    That is -log of the prior's mass in the code's bin, [B] nats: with all z decided by the image, -log p(x | z) plus
    code lengths is the negative ELBO of a model whose latents are the codes. What is pruned is at the prior's mean.
    """

    kept: Kept | None = None  # None: everything
    recorded: dict[int, Tensor] = field(default_factory=dict)  # code length of each group seen so far, [B] nats

    def __call__(self, group: LatentGroup) -> Tensor:
        """Choose z of `group`, [B, variates, H, W]."""
        kept = None if self.kept is None else self.kept[group.index]
        if kept is not None and not len(kept.variates):
            z, lengths = group.prior_mean, group.prior_mean[:, :0]
        else:
            z, lengths = group.rounded_posterior(None if kept is None else kept.variates)
            z, lengths = (z, lengths) if kept is None else _rest_at_mean(group, kept, z, lengths)
        self.recorded.setdefault(group.index, lengths.flatten(1).sum(dim=1))
        return z


def _rest_at_mean(group: LatentGroup, kept: KeptOfGroup, z: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Put the kept `z`, [B, k, H, W], among the prior's means of the others."""
    mean = group.prior_mean
    if kept.positions is not None:
        z = torch.where(kept.positions, z, mean[:, kept.variates])
        lengths = lengths * kept.positions
    return mean.index_copy(1, kept.variates, z), lengths


def posterior_mean(kept: Kept | None = None) -> Choose:
    """Choose the posterior's mean where kept, the prior's elsewhere: the deterministic reconstruction."""

    def choose(group: LatentGroup) -> Tensor:
        of_group = None if kept is None else kept[group.index]
        if of_group is None:
            return group.posterior().mean
        if not len(of_group.variates):
            return group.prior_mean
        mean = group.posterior(of_group.variates).mean
        return _rest_at_mean(group, of_group, mean, mean)[0]

    return choose


def prior_sample(noise: Noise, temperature: float | Sequence[float] = 1.0) -> Choose:
    """Sample the prior at `temperature`, one for all groups or one per group; 0 is the prior's mean."""
    if isinstance(temperature, Sequence):
        return lambda group: group.prior.sample(noise(group), temperature[group.index])
    return lambda group: group.prior.sample(noise(group), temperature)


def gaussian_noise(generator: torch.Generator | None = None) -> Noise:
    """Make fresh noise for each group, from `generator` (on the model's device) or the default one."""
    return lambda group: normal_like(group.prior.mean, generator)


def normal_like(z: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw standard normal numbers, [B, variates, H, W]; which ones does not depend on the memory format of `z`."""
    noise = torch.randn(z.shape, generator=generator, device=z.device, dtype=z.dtype)
    # Arithmetic on tensors of different memory formats is several times slower.
    return noise.to(memory_format=torch.channels_last) if z.stride(1) == 1 else noise
