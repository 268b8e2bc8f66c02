"""The whole model: both paths, rate and distortion per image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ..config import ModelConfig, PruningConfig
from ..errors import DataError
from .activations import checkpointing
from .bottom_up import Activations, BottomUp
from .choices import (
    Kept,
    Noise,
    RoundedPosterior,
    SampledPosterior,
    gaussian_noise,
    kept_of,
    posterior_mean,
    prior_sample,
)
from .gaussian import rounded_posterior
from .kernels.compiled import Compiler, compiled
from .kernels.sample_and_kl import FORMULAS, Formulas
from .likelihood import make_likelihood
from .precision import full_float32
from .recorded import Recording
from .temperature import Temperature, group_temperatures
from .top_down import Choose, Rounded, TopDown, TopDownBlock


class Elbo(NamedTuple):
    """Per image, [B], in bits/dim (nats / (ln 2 · C · H · W of the image))."""

    rate: Tensor  # KL of all latent groups
    distortion: Tensor  # negative log-likelihood given z

    @property
    def nelbo(self) -> Tensor:
        """Negative evidence lower bound: rate + distortion."""
        return self.rate + self.distortion


class Terms(NamedTuple):
    """The loss's terms per image, in nats."""

    nll: Tensor  # [B]: negative log-likelihood
    kl: Tensor  # [groups, B]: KL of each latent group


class HVAE(nn.Module):
    """Hierarchical VAE, such as Efficient-VDVAE (arXiv 2203.13751) and Very Deep VAE (arXiv 2011.10650).

    Images uint8 [B, C, H, W] in, latent groups and likelihood out.
    """

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
        self.pruning: PruningConfig | None = None
        """What its run says was pruned away."""
        self.keep: Sequence[Tensor] | None = None
        """Of each group what pruning left, True = keep, if its run was pruned and is whole; see `prune_to`."""
        self.kept: Kept | None = None
        """The same in numbers."""
        self.recording = Recording()
        """Which work on its batches is recorded as a CUDA graph."""

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
        blocks = len(self.bottom_up.blocks) + len(self.top_down.blocks)
        # Each with gradients, and without: steps in parts need both.
        dynamo.recompile_limit = max(dynamo.recompile_limit, 2 * blocks)
        for block in self.bottom_up.blocks:
            block.compile(dynamic=False, backend=backend)
        for block in self.top_down.blocks:
            cast(TopDownBlock, block).compile_parts(backend)
        self._nll = torch.compile(self.likelihood.nll, dynamic=False, backend=backend)

    def compile_formulas(self, compiler: Compiler = compiled) -> None:
        """Compile what is many small operations in training: the choice of z with its KL, and the likelihood."""
        formulas, rounded = Formulas(*map(compiler, FORMULAS)), compiler(rounded_posterior)
        self._use_formulas(formulas, rounded, compiler(self.likelihood.nll))

    def write_out_formulas(self) -> None:
        """Undo `compile_formulas`."""
        self._use_formulas(FORMULAS, rounded_posterior, self.likelihood.nll)

    def _use_formulas(self, formulas: Formulas, rounded: Rounded, nll: Callable[[Tensor, Tensor], Tensor]) -> None:
        for block in self.top_down.blocks:
            cast(TopDownBlock, block).use_formulas(formulas, rounded)
        self._nll = nll

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

    def prune_to(self, keep: Sequence[Tensor]) -> None:
        """Collapse posteriors to the prior from now on, wherever `keep` (per group bool [variates, 1, 1]) is False."""
        self.keep = [group.to(self.device) for group in keep]
        self.kept = kept_of(keep, self.device)

    def choose_posterior(self, noise: Noise, kept: Kept | None = None) -> SampledPosterior | RoundedPosterior:
        """Make the choice of z that this model's bound is of: posterior samples or, if it was trained for codes, codes.

        `kept` is a part of what pruning left; None: all of that.
        """
        kept = self.kept if kept is None else kept
        return RoundedPosterior(kept) if self.config.learned_steps else SampledPosterior(noise, kept)

    def choose_best(self) -> Choose:
        """Make the choice of z whose image is nearest: the posterior's mean, or codes if it was trained for these."""
        return RoundedPosterior(self.kept) if self.config.learned_steps else posterior_mean(self.kept)

    def forward(self, images: Tensor, noise: Noise, mask: Sequence[Tensor] | None = None) -> Terms:
        """Compute the terms of the loss along one choice of z (see `choose_posterior`), with gradients."""
        choose = self.choose_posterior(noise, None if mask is None else kept_of(mask, self.device))
        output = self.top_down(self._activations(images), choose, len(images))
        return Terms(self._nll(output, images.to(self.device)), choose.kl)

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
        output = self.top_down(self.activations(images), self.choose_best(), len(images))
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
