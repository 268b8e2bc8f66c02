"""The top-down path: the one loop over latent groups, in which the caller chooses z.

    state <- learned start
    for each latent group:   prior(state) -> posterior(state, skip) -> z = choose(group) -> state + r + W z -> cells

Training samples the posterior, generation the prior; pruning mixes both; the coder takes rounded or stored numbers.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn

from ..config import ModelConfig, StageConfig
from .activations import RunBlock
from .blocks import Cell, Unpool, conv, residual_cells
from .gaussian import DiagonalGaussian, GaussianForm, RawGaussian
from .kernels.sample_and_kl import Observe, observed_z, sample_and_kl
from .kernels.silu_conv import Kernel, halves, joined_kernel, kernel_of


class LatentGroup:
    """One latent group whose z is to be chosen: its prior and posterior; shapes are [B, variates, H, W].

    Nothing is computed before it is asked for: of the last group that a mask keeps, an encoder asks for no prior.
    `variates`, int64 [k], asks for these alone: [B, k, H, W].
    """

    def __init__(self, index: int, block: TopDownBlock, state: Tensor, skip: Tensor | None) -> None:
        self.index = index
        """Position in top-down order."""
        self.state = state
        """The state at the block's resolution, [B, width, H, W]."""
        self._block, self._skip = block, skip

    @cached_property
    def residual_and_prior(self) -> tuple[Tensor, RawGaussian]:
        """The term that the block adds to the state besides z, [B, width, H, W], and the prior's raw output."""
        return self._block.residual_and_prior(self.state)

    @property
    def _prior_raw(self) -> RawGaussian:
        return self.residual_and_prior[1]

    def _posterior_raw(self, variates: Tensor | None = None) -> RawGaussian:
        return self._block.posterior_raw(self.state, self._skip, variates)

    @cached_property
    def prior(self) -> DiagonalGaussian:
        """p(z_i | z_<i)."""
        return self._block.form.distribution(self._prior_raw)

    @property
    def prior_mean(self) -> Tensor:
        """The prior's mean, without its std."""
        return self._prior_raw.widened().mean

    def posterior(self, variates: Tensor | None = None) -> DiagonalGaussian:
        """Return q(z_i | z_<i, image)."""
        form = self._block.form
        own = form.distribution(self._posterior_raw(variates))
        return form.relative(own, self.prior.variates(variates)) if form.residual else own

    def sample_posterior(self, noise: Tensor, variates: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return z = mean + std · noise of the posterior, and its KL from the prior in nats, [B]."""
        prior_raw = self._prior_raw.variates(variates)  # first: autograd adds up gradients in this order
        return self._block.sample_and_kl(self._posterior_raw(variates), prior_raw, noise)

    def observed_z(self, noise: Tensor | None, observe: Observe) -> Tensor:
        """Return z of the posterior: a sample or, without `noise`, its mean. `observe` gets KL and std, in parts."""
        return observed_z(self._posterior_raw(), self._prior_raw, noise, self._block.form, observe)


Choose = Callable[[LatentGroup], Tensor]
"""z of a group, [B, variates, H, W]."""


class TopDownBlock(nn.Module):
    """One latent group: unpool, prior, posterior, the state's update by z, residual cells."""

    def __init__(self, config: ModelConfig, stage: StageConfig, *, unpool: Unpool | None) -> None:
        super().__init__()
        self.state_size = stage.state_size
        self.form = GaussianForm(config.posterior_scale, config.posterior_beta, config.residual_distribution)
        width, both = stage.width, 2 * stage.width
        self.unpool = unpool
        prior_scale = 0.0 if config.zero_prior_weights else 1.0
        self.prior_cell = Cell(config, width, int(width * stage.bottleneck), both, stage.kernel, prior_scale)
        self.prior_conv = conv(width, 2 * stage.variates)
        self.posterior_cell = Cell(config, both, int(both * stage.bottleneck / 2), width, stage.kernel)
        self.posterior_conv = conv(width, 2 * stage.variates)
        # Without the scale the state's variance grows with every group and training diverges at once.
        self.z_conv = conv(stage.variates, width, weight_scale=1.0 / math.sqrt(len(config.groups)))
        self.cells = residual_cells(config, stage)

    def forward(self, state: Tensor, skip: Tensor | None, index: int, choose: Choose) -> Tensor:
        """Return the state [B, width, H, W] after this group's z."""
        group = self.open(state, skip, index)
        z = choose(group)
        return self.after_z(group.state, group.residual_and_prior[0], z)

    def open(self, state: Tensor, skip: Tensor | None, index: int) -> LatentGroup:
        """Return the group whose z is to be chosen, from the state before this block."""
        return LatentGroup(index, self, state if self.unpool is None else self.unpool(state), skip)

    def residual_and_prior(self, state: Tensor) -> tuple[Tensor, RawGaussian]:
        """Compute the residual term, and the output for p(z_i | z_<i), from the state at this block's resolution."""
        residual, *prior_raw = self.prior_cell.before_last([state], *self._prior_heads())
        return residual, RawGaussian(*prior_raw)

    def posterior_raw(self, state: Tensor, skip: Tensor | None, variates: Tensor | None = None) -> RawGaussian:
        """Compute the output for q(z_i | z_<i, image), from the state before z and the skip; of `variates` if given."""
        if skip is None:
            raise ValueError("the posterior needs the bottom-up path's activations, and none were given")
        heads = halves(joined_kernel(kernel_of(self.posterior_cell.convs[-1]), kernel_of(self.posterior_conv)))
        if variates is not None:
            heads = [(weight[variates], bias[variates]) for weight, bias in heads]
        return RawGaussian(*self.posterior_cell.before_last([state, skip], *heads))

    def sample_and_kl(self, posterior: RawGaussian, prior: RawGaussian, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return z, a posterior sample, and its KL from the prior in nats, [B]."""
        return sample_and_kl(posterior, prior, noise, self.form)

    def after_z(self, state: Tensor, residual: Tensor, z: Tensor) -> Tensor:
        """Compute the state after z."""
        return self.cells(residual.add_(state).add_(self.z_conv(z)))

    def compile_parts(self, backend: str) -> None:
        """Compile what lies before, at and after the choice of z, which the caller's code makes."""
        for name in ("residual_and_prior", "posterior_raw", "sample_and_kl", "after_z"):
            setattr(self, name, torch.compile(getattr(self, name), dynamic=False, backend=backend))

    def _prior_heads(self) -> list[Kernel]:
        """Return the kernels of the residual term, the prior's mean and its scale; all contain the cell's last one."""
        of_residual, of_features = halves(kernel_of(self.prior_cell.convs[-1]))
        return [of_residual, *halves(joined_kernel(of_features, kernel_of(self.prior_conv)))]


class TopDown(nn.Module):
    """All latent groups, from the lowest resolution to the highest, and the output convolution."""

    def __init__(self, config: ModelConfig, out_channels: int) -> None:
        super().__init__()
        lowest, highest = config.stages[-1], config.stages[0]
        bound = math.sqrt(3.0 / (lowest.width * lowest.resolution**2))
        start = torch.empty(1, lowest.width, lowest.resolution, lowest.resolution)
        self.start = nn.Parameter(start.uniform_(-bound, bound))
        blocks = list(_blocks(config))
        self.blocks = nn.ModuleList(block for _, block in blocks)
        self.skips = [skip for skip, _ in blocks]
        self.run_block: RunBlock = operator.call
        self.output_conv = conv(highest.width, out_channels, config.output_kernel)

    def forward(self, activations: Sequence[Tensor] | None, choose: Choose, batch: int) -> Tensor:
        """Compute the parameters of the output distribution, [batch, out_channels, H, W].

        `activations` are the bottom-up path's skips, in its order; None if no posterior will be asked for.
        """
        return self.output_conv(self.run_groups(activations, choose, batch, range(len(self.blocks))))

    def run_groups(
        self,
        activations: Sequence[Tensor] | None,
        choose: Choose,
        batch: int,
        groups: range,
        state: Tensor | None = None,
    ) -> Tensor:
        """Run the loop over consecutive `groups`: the state after the last of them.

        `state` is that before the first of them if this is not group 0. An encoder stops at the last group that a mask
        keeps.
        """
        if state is None:
            state = self.start.expand(batch, -1, -1, -1)
        for index in groups:
            state = self.run_block(self.blocks[index], state, self._skip(activations, index), index, choose)
        return state

    def group(self, activations: Sequence[Tensor] | None, index: int, state: Tensor) -> LatentGroup:
        """Return latent group `index`, from the state before it, to callers that want nothing that comes after it."""
        return cast(TopDownBlock, self.blocks[index]).open(state, self._skip(activations, index), index)

    def _skip(self, activations: Sequence[Tensor] | None, index: int) -> Tensor | None:
        return None if activations is None else activations[self.skips[index]]


def _blocks(config: ModelConfig) -> Iterator[tuple[int, TopDownBlock]]:
    """Yield each latent group's skip (its number in bottom-up order) and block, in top-down order."""
    skip = sum(stage.linked_blocks for stage in config.stages)
    stages = config.stages[::-1]
    for stage, below in zip(stages, [None, *stages[:-1]], strict=True):
        for linked in range(stage.linked_blocks):
            skip -= 1
            unpool = unpool_between(config, stage, below) if linked == 0 else None
            yield skip, TopDownBlock(config, stage, unpool=unpool)
            for _ in range(stage.extra_top_down if linked == stage.extra_top_down_after else 0):
                yield skip, TopDownBlock(config, stage, unpool=None)


def unpool_between(config: ModelConfig, stage: StageConfig, below: StageConfig | None) -> Unpool | None:
    """Make what enlarges the state of the stage `below` to that of `stage`; None if nothing is to be enlarged."""
    if below is None or below.resolution == stage.resolution:
        return None
    projected = config.resample == "projected"
    return Unpool(below.width, stage.width, stage.resolution // below.resolution, stage.resolution, projected=projected)
