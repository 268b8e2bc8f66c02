"""The top-down path: the one loop over latent groups, in which the caller chooses z.

    state <- learned start
    for each latent group:   prior(state) -> posterior(state, skip) -> z = choose(group) -> state + r + W z -> cells

Training samples the posterior, generation the prior; pruning mixes both; the coder takes rounded or stored numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import ModelConfig, StageConfig
from .blocks import Cell, Unpool, conv
from .gaussian import DiagonalGaussian, std_from_raw


@dataclass(frozen=True)
class LatentGroup:
    """What is known of one latent group when its z is to be chosen; shapes are [B, variates, H, W]."""

    index: int
    """Position in top-down order."""
    prior: DiagonalGaussian
    """p(z_i | z_<i)."""
    posterior: Callable[[], DiagonalGaussian]
    """q(z_i | z_<i, image); computed only when called, so that a group nobody asks for costs nothing."""


Choose = Callable[[LatentGroup], Tensor]
"""z of a group, [B, variates, H, W]."""


class TopDownBlock(nn.Module):
    """One latent group: unpool, prior, posterior, the state's update by z, residual cells."""

    def __init__(self, config: ModelConfig, stage: StageConfig, *, skip: int, unpool: Unpool | None) -> None:
        super().__init__()
        self.config = config
        self.skip = skip
        scale = 1.0 / math.sqrt(len(config.groups))
        width, both = stage.width, 2 * stage.width
        middle = int(width * stage.bottleneck)
        self.unpool = unpool
        self.prior_cell = Cell(config, width, middle, both, stage.kernel, residual=False)
        self.prior_conv = conv(width, 2 * stage.variates)
        posterior_middle = int(both * stage.bottleneck / 2)
        self.posterior_cell = Cell(config, both, posterior_middle, width, stage.kernel, residual=False)
        self.posterior_conv = conv(width, 2 * stage.variates)
        # Without the scale the state's variance grows with every group and training diverges at once.
        self.z_conv = conv(stage.variates, width, weight_scale=scale)
        last_scale = scale if config.stable_init else 1.0
        self.cells = nn.Sequential(
            *(
                Cell(config, width, middle, width, stage.kernel, residual=True, last_scale=last_scale)
                for _ in range(config.cells_per_block)
            )
        )
        if config.zero_prior_weights:
            nn.init.zeros_(self.prior_cell.convs[-1].weight)

    def forward(self, state: Tensor, skip: Tensor | None, index: int, choose: Choose) -> Tensor:
        """The state [B, width, H, W] after this group's z."""
        if self.unpool is not None:
            state = self.unpool(state)
        residual, features = self.prior_cell(state).chunk(2, dim=1)
        prior = self._gaussian(self.prior_conv(features))
        z = choose(LatentGroup(index, prior, lambda: self.posterior(state, skip, prior)))
        return self.cells(state + residual + self.z_conv(z))

    def posterior(self, state: Tensor, skip: Tensor | None, prior: DiagonalGaussian) -> DiagonalGaussian:
        """q(z_i | z_<i, image) from the state before z and the skip."""
        if skip is None:
            raise ValueError("the posterior needs the bottom-up path's activations, and none were given")
        q = self._gaussian(self.posterior_conv(self.posterior_cell(torch.cat([state, skip], dim=1))))
        if self.config.residual_distribution:
            # Raw log scales that add (base logstd) are stds that multiply: one formula for both bases.
            return DiagonalGaussian(q.mean + prior.mean, q.std * prior.std)
        return q

    def _gaussian(self, parameters: Tensor) -> DiagonalGaussian:
        mean, raw = parameters.float().chunk(2, dim=1)
        return DiagonalGaussian(mean, std_from_raw(raw, self.config.posterior_scale, self.config.posterior_beta))


class TopDown(nn.Module):
    """All latent groups, from the lowest resolution to the highest, and the output convolution."""

    def __init__(self, config: ModelConfig, out_channels: int) -> None:
        super().__init__()
        lowest, highest = config.stages[-1], config.stages[0]
        bound = math.sqrt(3.0 / (lowest.width * lowest.resolution**2))
        start = torch.empty(1, lowest.width, lowest.resolution, lowest.resolution).uniform_(-bound, bound)
        self.start = nn.Parameter(start)
        self.blocks = nn.ModuleList(_blocks(config))
        self.output_conv = conv(highest.width, out_channels, config.output_kernel)

    def forward(self, activations: Sequence[Tensor] | None, choose: Choose, batch: int) -> Tensor:
        """Parameters of the output distribution, [batch, out_channels, H, W].

        `activations` are the bottom-up path's skips, in its order; None where no posterior will be asked for.
        """
        state = self.start.expand(batch, -1, -1, -1)
        for state in self.states(activations, choose, state):
            pass
        return self.output_conv(state)

    def run_groups(self, activations: Sequence[Tensor], choose: Choose, batch: int, groups: int) -> None:
        """Run the first `groups` latent groups only: all that an encoder needs after the last kept one."""
        state = self.start.expand(batch, -1, -1, -1)
        states = self.states(activations, choose, state)
        for _ in range(groups):
            next(states)

    def states(self, activations: Sequence[Tensor] | None, choose: Choose, state: Tensor) -> Iterator[Tensor]:
        """The loop itself: the state after each latent group, computed as the caller asks for it."""
        for index, block in enumerate(self.blocks):
            skip = None if activations is None else activations[block.skip]
            state = block(state, skip, index, choose)
            yield state


def _blocks(config: ModelConfig) -> Iterator[TopDownBlock]:
    skip = sum(stage.linked_blocks for stage in config.stages)
    below: StageConfig | None = None
    for stage in reversed(config.stages):
        for linked in range(stage.linked_blocks):
            skip -= 1
            unpool = _unpool(stage, below) if linked == 0 else None
            yield TopDownBlock(config, stage, skip=skip, unpool=unpool)
            extra = stage.extra_top_down if linked == stage.extra_top_down_after else 0
            for _ in range(extra):
                yield TopDownBlock(config, stage, skip=skip, unpool=None)
        below = stage


def _unpool(stage: StageConfig, below: StageConfig | None) -> Unpool | None:
    if below is None or below.resolution == stage.resolution:
        return None
    return Unpool(below.width, stage.width, stage.resolution // below.resolution, stage.resolution)
