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
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ..config import ModelConfig, StageConfig
from ..store.quantiser import MAX_STEP, MIN_STEP
from .activations import RunBlock
from .blocks import Cell, Conv, OutputConv, Unpool, conv, residual_cells
from .bottom_up import Activations
from .gaussian import DiagonalGaussian, GaussianForm, RawGaussian, rounded_posterior
from .kernels.activated_conv import Kernel, halves, joined_kernel, kernel_of, split_kernel
from .kernels.joined_kernels import joined_kernels
from .kernels.sample_and_kl import FORMULAS, Formulas, Observe, observed_z, sample_and_kl

STEP_RATE = 20.0  # how much faster than other weights a learned step changes (docs/pruning.md)


Rounded = Callable[..., tuple[Tensor, Tensor]]
"""Computes what `rounded_posterior` does."""


class Heads(NamedTuple):
    """Kernels in the place of the last two convolutions of a group's prior and posterior, if they were joined before.

    They have all outputs of a cell: the residual term, the prior's mean and its scale; the posterior's mean and scale.
    """

    prior: Kernel  # weight [width + 2 · variates, ...]
    posterior: Kernel  # weight [2 · variates, ...]


class LatentGroup:
    """One latent group whose z is to be chosen: its prior and posterior; shapes are [B, variates, H, W].

    Nothing is computed before it is asked for: of the last group that a mask keeps, an encoder asks for no prior.
    `variates`, int64 [k], asks for these alone: [B, k, H, W]. A group whose variates were all pruned away has z, prior
    and posterior of [B, 0, H, W] and a KL of 0.
    """

    def __init__(
        self, index: int, block: TopDownBlock, state: Tensor, skip: Tensor | None, heads: Heads | None = None
    ) -> None:
        self.index = index
        """Position in top-down order."""
        self.state = state
        """The state at the block's resolution, [B, width, H, W]."""
        self._block, self._skip, self._heads = block, skip, heads

    @cached_property
    def residual_and_prior(self) -> tuple[Tensor, RawGaussian]:
        """The term that the block adds to the state besides z, [B, width, H, W], and the prior's raw output."""
        return self._block.residual_and_prior(self.state, self._heads)

    @property
    def residual(self) -> Tensor:
        """The term that the block adds to the state besides z; alone, if the prior was not asked for before."""
        if "residual_and_prior" in self.__dict__:
            return self.residual_and_prior[0]
        return self._block.residual(self.state)

    @property
    def _prior_raw(self) -> RawGaussian:
        return self.residual_and_prior[1]

    def _posterior_raw(self, variates: Tensor | None = None) -> RawGaussian:
        return self._block.posterior_raw(self.state, self._skip, variates, self._heads)

    @cached_property
    def prior(self) -> DiagonalGaussian:
        """p(z_i | z_<i)."""
        return self._block.form.distribution(self._prior_raw)

    @property
    def prior_mean(self) -> Tensor:
        """The prior's mean, without its std."""
        return self._prior_raw.widened().mean

    def in_its_layout(self, z: Tensor) -> Tensor:
        """Return `z` in the memory format of this group's tensors; the rounding of what follows depends on it."""
        if self.state.stride(1) != 1 or z.stride(1) == 1:
            return z
        # `contiguous` would leave a single variate's strides alone, and a convolution would give the other format.
        return torch.empty_like(z, memory_format=torch.channels_last).copy_(z)

    def posterior(self, variates: Tensor | None = None) -> DiagonalGaussian:
        """Return q(z_i | z_<i, image)."""
        form = self._block.form
        own = form.distribution(self._posterior_raw(variates))
        return form.relative(own, self.prior.variates(variates)) if form.residual else own

    def sample_posterior(self, noise: Tensor, variates: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return z = mean + std · noise of the posterior, and its KL from the prior in nats, [B]."""
        prior_raw = self._prior_raw.variates(variates)  # first: autograd adds up gradients in this order
        return self._block.sample_and_kl(self._posterior_raw(variates), prior_raw, noise)

    @property
    def steps(self) -> Tensor:
        """The learned steps of codes, [variates, 1, 1]."""
        return self._block.steps()

    def rounded_posterior(self, variates: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the posterior's mean, rounded to a multiple of the learned step, and the code's length in nats.

        Both are [B, k, H, W]; see `gaussian.rounded_posterior`.
        """
        block, steps = self._block, self._block.steps(variates)
        posterior_raw = self._posterior_raw(variates)  # first: autograd adds up gradients in this order
        return block.rounded(block.form, posterior_raw, self._prior_raw, steps, variates)

    def observed_z(self, noise: Tensor | None, observe: Observe) -> Tensor:
        """Return z of the posterior: a sample or, without `noise`, its mean. `observe` gets KL and q, in parts."""
        return observed_z(self._posterior_raw(), self._prior_raw, noise, self._block.form, observe)


Choose = Callable[[LatentGroup], Tensor]
"""z of a group, [B, variates, H, W]."""


class TopDownBlock(nn.Module):
    """One latent group: unpool, prior, posterior, the state's update by z, residual cells.

    Without `variates` the prior cell gives only the residual term, and there is no posterior.
    """

    def __init__(self, config: ModelConfig, stage: StageConfig, variates: int, *, unpool: Unpool | None) -> None:
        super().__init__()
        self.state_size = stage.state_size
        self.form = GaussianForm(config.posterior_scale, config.posterior_beta, config.residual_distribution)
        width, both = stage.width, 2 * stage.width
        self.width, self.variates, self.unpool = width, variates, unpool
        features = 2 * variates if config.heads == "direct" else width
        prior_scale, outputs = 0.0 if config.zero_prior_weights else 1.0, width + features if variates else width
        self.prior_cell = Cell(config, width, int(width * stage.bottleneck), outputs, stage.kernel, prior_scale)
        depth, init = len(config.groups), config.init
        if variates:
            self.prior_conv = _parameters_conv(config, width, variates)
            self.posterior_cell = Cell(config, both, int(both * stage.bottleneck / 2), features, stage.kernel)
            self.posterior_conv = _parameters_conv(config, width, variates)
            # Without the scale the state's variance grows with every group and training diverges at once.
            self.z_conv = conv(variates, width, init=init, weight_scale=1.0 / math.sqrt(depth))
        self.cells = residual_cells(config, stage, depth)
        if config.learned_steps and variates:
            self.log_step = nn.Parameter(torch.zeros(variates))
        self.formulas, self.rounded = FORMULAS, rounded_posterior

    def steps(self, variates: Tensor | None = None) -> Tensor:
        """Return the learned steps of codes, [k, 1, 1]: exp(20 · log_step), so that they learn 20 times as fast.

        An optimiser that moves every weight by about its rate moves a step by 20 times that share of it.
        """
        if not self.variates:
            return kernel_of(self.prior_cell.convs[-1])[0].new_ones(0, 1, 1)
        logs = self.log_step if variates is None else self.log_step[variates]
        return torch.exp(STEP_RATE * logs).clamp(MIN_STEP, MAX_STEP).view(-1, 1, 1)

    def forward(
        self, state: Tensor, skip: Tensor | None, index: int, choose: Choose, heads: Heads | None = None
    ) -> Tensor:
        """Return the state [B, width, H, W] after this group's z."""
        group = self.open(state, skip, index, heads)
        z = choose(group)
        return self.after_z(group.state, group.residual, z)

    def open(self, state: Tensor, skip: Tensor | None, index: int, heads: Heads | None = None) -> LatentGroup:
        """Return the group whose z is to be chosen, from the state before this block; `heads` saves joining them."""
        return LatentGroup(index, self, state if self.unpool is None else self.unpool(state), skip, heads)

    def residual(self, state: Tensor) -> Tensor:
        """Compute the residual term alone, from the state at this block's resolution."""
        return self.prior_cell.before_last([state], self._residual_head())[0]

    def residual_and_prior(self, state: Tensor, heads: Heads | None = None) -> tuple[Tensor, RawGaussian]:
        """Compute the residual term, and the output for p(z_i | z_<i), from the state at this block's resolution."""
        if not self.variates:
            return self.residual(state), _no_variates(state)
        if heads is None:
            residual, *prior_raw = self.prior_cell.before_last([state], *self._prior_heads())
        else:
            sizes = [self.width, self.variates, self.variates]
            residual, *prior_raw = self.prior_cell.before_last([state], heads.prior, sizes=sizes)
        return residual, RawGaussian(*prior_raw)

    def posterior_raw(
        self, state: Tensor, skip: Tensor | None, variates: Tensor | None = None, heads: Heads | None = None
    ) -> RawGaussian:
        """Compute the output for q(z_i | z_<i, image), from the state before z and the skip; of `variates` if given."""
        if not self.variates:
            return _no_variates(state)
        if skip is None:
            raise ValueError("the posterior needs the bottom-up path's activations, and none were given")
        if heads is None:
            kernels = _parameter_heads(kernel_of(self.posterior_cell.convs[-1]), self.posterior_conv)
            if variates is not None:
                kernels = [(weight[variates], bias[variates]) for weight, bias in kernels]
            return RawGaussian(*self.posterior_cell.before_last([state, skip], *kernels))
        kernel, count = heads.posterior, self.variates
        if variates is not None:
            chosen, count = torch.cat([variates, variates + self.variates]), len(variates)
            kernel = (kernel[0][chosen], kernel[1][chosen])
        return RawGaussian(*self.posterior_cell.before_last([state, skip], kernel, sizes=[count, count]))

    def sample_and_kl(self, posterior: RawGaussian, prior: RawGaussian, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return z, a posterior sample, and its KL from the prior in nats, [B]."""
        return sample_and_kl(posterior, prior, noise, self.form, self.formulas)

    def after_z(self, state: Tensor, residual: Tensor, z: Tensor) -> Tensor:
        """Compute the state after z; `residual` may be overwritten."""
        # On other devices it is a part of a larger tensor, see `Heads`, which stays for the backward pass.
        state = residual.add_(state) if state.device.type == "cpu" else residual + state
        return self.cells(state.add_(self.z_conv(z)) if self.variates else state)

    def compile_parts(self, backend: str) -> None:
        """Compile what lies before, at and after the choice of z, which the caller's code makes."""
        for name in ("residual", "residual_and_prior", "posterior_raw", "sample_and_kl", "after_z"):
            setattr(self, name, torch.compile(getattr(self, name), dynamic=False, backend=backend))

    def use_formulas(self, formulas: Formulas, rounded: Rounded) -> None:
        """Choose z by other functions from now on that compute the same, such as compiled ones."""
        self.formulas, self.rounded = formulas, rounded

    def prior_kernels(self) -> list[Kernel]:
        """Return the two parts of the prior cell's last kernel: of the residual term, of the features or parameters."""
        return split_kernel(kernel_of(self.prior_cell.convs[-1]), self.width)

    def _residual_head(self) -> Kernel:
        """Return the kernel of the residual term: the first part of the prior cell's last one, or all of it."""
        return self.prior_kernels()[0] if self.variates else kernel_of(self.prior_cell.convs[-1])

    def _prior_heads(self) -> list[Kernel]:
        """Return the kernels of the residual term, the prior's mean and its scale; all contain the cell's last one."""
        of_residual, rest = self.prior_kernels()
        return [of_residual, *_parameter_heads(rest, self.prior_conv)]


def _parameters_conv(config: ModelConfig, width: int, variates: int) -> Conv | None:
    """Make the convolution from a cell's features to a distribution's parameters; None if the cell gives these."""
    return conv(width, 2 * variates, init=config.init) if config.heads == "projected" else None


def _parameter_heads(last: Kernel, after: Conv | None) -> list[Kernel]:
    """Return the kernels of mean and scale, from a cell's `last` one and the convolution `after` the cell, if any."""
    return halves(last if after is None else joined_kernel(last, kernel_of(after)))


def joined_heads(blocks: Sequence[TopDownBlock]) -> list[Heads | None]:
    """Join the last two convolutions of priors and posteriors, those of equal shapes together; None: no variates.

    Cells that give the parameters themselves have nothing to join: their last kernels are the heads.
    """
    heads: list[Heads | None] = [None] * len(blocks)
    alike: dict[tuple[torch.Size, ...], list[int]] = {}
    for number, block in enumerate(blocks):
        if not block.variates:
            continue
        last = (block.prior_cell.convs[-1], block.posterior_cell.convs[-1])
        if block.prior_conv is None:
            heads[number] = Heads(*map(kernel_of, last))
        else:
            shapes = tuple(kernel_of(layer)[0].shape for layer in (*last, block.prior_conv))
            alike.setdefault(shapes, []).append(number)
    for numbers in alike.values():
        for number, *kernels in zip(numbers, *_joined_alike([blocks[number] for number in numbers]), strict=True):
            heads[number] = Heads(*kernels)
    return heads


def _joined_alike(blocks: Sequence[TopDownBlock]) -> tuple[list[Kernel], list[Kernel]]:
    """Return the heads of priors and of posteriors, of blocks with equal shapes."""
    prior = joined_kernels(
        [kernel_of(block.prior_cell.convs[-1]) for block in blocks],
        [kernel_of(cast(Conv, block.prior_conv)) for block in blocks],
        beside=blocks[0].width,
    )
    posterior = joined_kernels(
        [kernel_of(block.posterior_cell.convs[-1]) for block in blocks],
        [kernel_of(cast(Conv, block.posterior_conv)) for block in blocks],
    )
    return prior, posterior


def _no_variates(state: Tensor) -> RawGaussian:
    """Return the prior or posterior of a group without variates, [B, 0, H, W]."""
    nothing = state.new_empty(len(state), 0, *state.shape[2:])
    return RawGaussian(nothing, nothing)


class TopDown(nn.Module):
    """All latent groups, from the lowest resolution to the highest, and the output convolution."""

    def __init__(self, config: ModelConfig, out_channels: int) -> None:
        super().__init__()
        lowest, highest = config.top_down_stages[0], config.stages[0]
        bound = math.sqrt(3.0 / (lowest.width * lowest.resolution**2)) if config.init == "xavier" else 0.0
        start = torch.empty(1, lowest.width, lowest.resolution, lowest.resolution)
        self.start = nn.Parameter(start.uniform_(-bound, bound))
        self.blocks = nn.ModuleList(_blocks(config))
        self.skips = config.group_skips
        self.run_block: RunBlock = operator.call
        self.output_conv = OutputConv(
            highest.width, out_channels, config.output_kernel, gain=config.output_gain, init=config.init
        )

    def forward(self, activations: Activations | None, choose: Choose, batch: int) -> Tensor:
        """Compute the parameters of the output distribution, [batch, out_channels, H, W].

        `activations` are the bottom-up path's skips, in its order; None if no posterior will be asked for.
        """
        return self.output_conv(self.run_groups(activations, choose, batch, range(len(self.blocks))))

    def run_groups(
        self,
        activations: Activations | None,
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
        for index, heads in zip(groups, self._heads(groups), strict=True):
            state = self.run_block(self.blocks[index], state, self._skip(activations, index), index, choose, heads)
        return state

    def _heads(self, groups: range) -> Sequence[Heads | None]:
        """Join heads before the loop if that is faster: on a CPU each group's are, when they are wanted."""
        if self.start.device.type == "cpu":
            return [None] * len(groups)
        return joined_heads([cast(TopDownBlock, self.blocks[index]) for index in groups])

    def group(self, activations: Activations | None, index: int, state: Tensor) -> LatentGroup:
        """Return latent group `index`, from the state before it, to callers that want nothing that comes after it."""
        return cast(TopDownBlock, self.blocks[index]).open(state, self._skip(activations, index), index)

    def _skip(self, activations: Activations | None, index: int) -> Tensor | None:
        return None if activations is None else activations[self.skips[index]]


def _blocks(config: ModelConfig) -> Iterator[TopDownBlock]:
    """Yield each latent group's block, in top-down order."""
    stages = config.top_down_stages
    for stage, below in zip(stages, [None, *stages[:-1]], strict=True):
        for number, variates in enumerate(stage.group_variates):
            unpool = unpool_between(config, stage, below) if number == 0 else None
            yield TopDownBlock(config, stage, variates, unpool=unpool)


def unpool_between(config: ModelConfig, stage: StageConfig, below: StageConfig | None) -> Unpool | None:
    """Make what enlarges the state of the stage `below` to that of `stage`; None if nothing is to be enlarged."""
    if below is None or below.resolution == stage.resolution:
        return None
    return Unpool(
        below.width,
        stage.width,
        stage.resolution // below.resolution,
        stage.resolution,
        projected=config.resample == "projected",
        biased=config.largest_start is None or stage.resolution <= config.largest_start,
        init=config.init,
    )
