"""The whole model: both paths, rate and distortion per image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..errors import DataError
from .activations import checkpointing
from .bottom_up import Activations, BottomUp
from .likelihood import make_likelihood
from .precision import full_float32
from .temperature import Temperature, group_temperatures
from .top_down import LatentGroup, TopDown, TopDownBlock

Noise = Callable[[LatentGroup], Tensor]
"""Standard normal numbers for a group, [B, variates, H, W]."""


class Elbo(NamedTuple):
    """Per image, [B], in bits/dim (nats / (ln 2 · C · H · W of the image))."""

    rate: Tensor
    distortion: Tensor

    @property
    def nelbo(self) -> Tensor:
        """Negative evidence lower bound: rate + distortion."""
        return self.rate + self.distortion


class Terms(NamedTuple):
    """The loss's terms per image, in nats."""

    nll: Tensor  # [B]: negative log-likelihood
    kl: Tensor  # [groups, B]: KL of each latent group


def gaussian_noise(generator: torch.Generator | None = None) -> Noise:
    """Make fresh noise for each group, from `generator` (on the model's device) or the default one."""
    return lambda group: normal_like(group.prior.mean, generator)


def normal_like(z: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw standard normal numbers, [B, variates, H, W]; which ones does not depend on the memory format of `z`."""
    noise = torch.randn(z.shape, generator=generator, device=z.device, dtype=z.dtype)
    # Arithmetic on tensors of different memory formats is several times slower.
    return noise.to(memory_format=torch.channels_last) if z.stride(1) == 1 else noise


@dataclass
class SampledPosterior:
    """Chooses z from the posterior, collapsed to the prior where pruned; records each group's KL.

    A pruned dimension's posterior *is* the prior: its z is a prior sample and its KL is exactly 0, so the bound stays
    a bound.
    """

    noise: Noise
    mask: Sequence[Tensor] | None = None  # per group True = keep, [variates, 1, 1] or [variates, H, W]; None keeps all

    def __post_init__(self) -> None:
        self.recorded: dict[int, Tensor] = {}
        """KL of each group seen so far, [B] nats."""
        self._kept = None if self.mask is None else [_kept_variates(keep) for keep in self.mask]

    @property
    def kl(self) -> list[Tensor]:
        """[B] nats of each group seen so far."""
        return list(self.recorded.values())

    def __call__(self, group: LatentGroup) -> Tensor:
        """Choose z of `group`, [B, variates, H, W]."""
        kept = None if self._kept is None else self._kept[group.index]
        noise = self.noise(group)
        z, kl = group.sample_posterior(noise) if kept is None else _sample_kept(group, *kept, noise)
        self.recorded.setdefault(group.index, kl)  # a checkpointed block is run again in the backward pass
        return z


def _kept_variates(keep: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """Read a group's mask: variates kept at one position at least, int64 [k], and which positions, bool [k, H, W].

    The positions are None if all are kept, and the result is None if the whole group is.
    """
    if keep.all():
        return None
    variates = keep.flatten(1).any(dim=1).nonzero().flatten()
    return variates, None if keep[variates].all() else keep[variates]


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


def posterior_mean(group: LatentGroup) -> Tensor:
    """Choose the posterior's mean: the deterministic reconstruction."""
    return group.posterior().mean


def prior_sample(noise: Noise, temperature: float | Sequence[float] = 1.0) -> Callable[[LatentGroup], Tensor]:
    """Sample the prior at `temperature`, one for all groups or one per group; 0 is the prior's mean."""
    if isinstance(temperature, Sequence):
        return lambda group: group.prior.sample(noise(group), temperature[group.index])
    return lambda group: group.prior.sample(noise(group), temperature)


class HVAE(nn.Module):
    """Efficient-VDVAE (arXiv 2203.13751): images uint8 [B, C, H, W] in, latent groups and likelihood out."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.run: Path | None = None
        """The run it was loaded from."""
        self.known_hash: tuple[tuple[tuple[int, int], ...], str] | None = None
        """The result of `model_hash`, with the versions of the weights that it holds for."""
        self.likelihood = make_likelihood(config)
        self.bottom_up = BottomUp(config)
        self.top_down = TopDown(config, self.likelihood.out_channels)
        self._nll: Callable[[Tensor, Tensor], Tensor] = self.likelihood.nll

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.top_down.start.device

    @property
    def nats_per_bit_dim(self) -> float:
        """ln 2 · C · H · W: nats per image divided by this are bits/dim."""
        return self.config.nats_per_bit_dim

    def checkpoint_activations(self) -> None:
        """Save only each block's inputs for the backward pass, which runs it again; noise must then be the same."""
        self.bottom_up.run_block = self.top_down.run_block = checkpointing(self.config)

    def compile_parts(self, backend: str = "inductor") -> None:
        """Compile each block and the likelihood (torch.compile); blocks of equal shapes share what is compiled."""
        dynamo = torch._dynamo.config
        dynamo.recompile_limit = max(dynamo.recompile_limit, len(self.bottom_up.blocks) + len(self.top_down.blocks))
        for block in self.bottom_up.blocks:
            block.compile(dynamic=False, backend=backend)
        for block in self.top_down.blocks:
            cast(TopDownBlock, block).compile_parts(backend)
        self._nll = torch.compile(self.likelihood.nll, dynamic=False, backend=backend)

    @full_float32()
    def activations(self, images: Tensor) -> Activations:
        """Compute the skip activations of the bottom-up path for uint8 `images` [B, C, H, W].

        Raises `DataError` if the images are not what the model was made for.
        """
        return self._activations(images)

    def _activations(self, images: Tensor) -> Activations:
        """`activations`, in the precision that is set."""
        if not isinstance(images, Tensor):
            kind = type(images).__name__
            raise DataError(f"images are of type {kind}; give a tensor, such as torch.from_numpy(array)")
        shape, size = list(images.shape), self.config.image_size
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise DataError(f"images are {images.dtype} {shape}; give uint8 [batch, channels, height, width]")
        if shape[1:] != [self.config.channels, size, size]:
            raise DataError(f"images are {shape[1:]}; this model takes {[self.config.channels, size, size]}")
        return self.bottom_up(self.likelihood.to_input(images.to(self.device)))

    def forward(self, images: Tensor, noise: Noise, mask: Sequence[Tensor] | None = None) -> Terms:
        """Compute the terms of the loss along one posterior sample, with gradients."""
        choose = SampledPosterior(noise, mask)
        output = self.top_down(self._activations(images), choose, len(images))
        return Terms(self._nll(output, images.to(self.device)), torch.stack(choose.kl))

    @torch.no_grad()
    @full_float32()
    def elbo(
        self, images: Tensor, *, mask: Sequence[Tensor] | None = None, generator: torch.Generator | None = None
    ) -> Elbo:
        """Compute rate and distortion of uint8 `images` [B, C, H, W] along one posterior sample: [B] each, bits/dim.

        `mask` (per group, True = keep, [variates, 1, 1] or [variates, H, W]) collapses pruned posteriors to the prior.
        Raises `DataError` on other images.
        """
        terms = self.forward(images, gaussian_noise(generator), mask)
        return Elbo(terms.kl.sum(dim=0) / self.nats_per_bit_dim, terms.nll / self.nats_per_bit_dim)

    @torch.no_grad()
    @full_float32()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Compute the expected images at the posterior's mean, uint8 [B, C, H, W]."""
        output = self.top_down(self.activations(images), posterior_mean, len(images))
        return self.likelihood.to_pixels(self.likelihood.mean(output))

    @torch.no_grad()
    @full_float32()
    def sample(self, count: int, temperature: Temperature = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Compute the expected images of `count` draws from the prior at `temperature`, uint8 [count, C, H, W].

        `temperature` is in any form of `group_temperatures`, which raises `UsageError`. `sampling.sample_images` draws
        many images in batches.
        """
        temperatures = group_temperatures(temperature, self.config)
        output = self.top_down(None, prior_sample(gaussian_noise(generator), temperatures), count)
        return self.likelihood.to_pixels(self.likelihood.mean(output))
