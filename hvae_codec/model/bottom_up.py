"""The bottom-up path: an image to the skip activations that the posteriors read.

    skips = projected    x -> cells -> x ──────────> pool -> ...      skips = raw    x ──────────> cells -> pool -> ...
                                       └─> 1 × 1 -> skip                             └─> skip

A skip that no latent group reads, as all groups that did have lost their variates, is not computed: its place in the
list stays and holds None. Nor is anything computed after the last skip that is read.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from ..config import ModelConfig, StageConfig
from .activations import RunBlock
from .blocks import Pool, conv, residual_cells

Activations = Sequence[Tensor | None]
"""The skips, [B, width, H, W] each, in bottom-up order; None in the place of one that no posterior reads."""


def image_count(activations: Activations) -> int:
    """Count the images that `activations` are of."""
    return next(len(skip) for skip in activations if skip is not None)


def first_images(activations: Activations, count: int) -> Activations:
    """Take the activations of the first `count` images."""
    return [None if skip is None else skip[:count] for skip in activations]


class BottomUpBlock(nn.Module):
    """Residual cells; a block whose skip is read hands it over; the last of a stage pools if another stage follows.

    A block without `cells` only hands over what it is given.
    """

    def __init__(
        self, config: ModelConfig, stage: StageConfig, *, skip: bool, pool: Pool | None, cells: bool = True
    ) -> None:
        super().__init__()
        self.state_size = stage.state_size
        projects = skip and config.skips == "projected"
        self.cells = residual_cells(config, stage, _depth(config)) if cells else nn.Sequential()
        self.skip = conv(stage.width, stage.width, init=config.init) if projects else None
        self.raw_skip = skip and not projects
        self.pool = pool

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the activations for the next block, and the skip (taken before the pool)."""
        skip = x if self.raw_skip else None
        x = self.cells(x)
        if self.skip is not None:
            skip = self.skip(x)
        return (self.pool(x) if self.pool is not None else x), skip


class BottomUp(nn.Module):
    """The bottom-up blocks, from the highest resolution to the lowest, up to the last one whose skip is read."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_conv = conv(config.channels, config.stages[0].width, config.input_kernel, init=config.init)
        self.run_block: RunBlock = operator.call
        blocks = list(_blocks(config))
        self.blocks = nn.ModuleList(block for _, block in blocks)
        self.skips = [skip for skip, _ in blocks]
        self.skip_count = sum(stage.linked_blocks for stage in config.stages)

    def forward(self, x: Tensor) -> Activations:
        """Return the linked blocks' skips [B, width, H, W] for input [B, C, H, W], in this path's order."""
        x = self.input_conv(x)
        skips: list[Tensor | None] = [None] * self.skip_count
        for number, block in zip(self.skips, self.blocks, strict=True):
            x, skip = self.run_block(block, x)
            if number is not None:
                skips[number] = skip
        return skips


def _blocks(config: ModelConfig) -> Iterator[tuple[int | None, BottomUpBlock]]:
    """Yield each block with the number of its skip; None for a block that is not linked."""
    read = {skip for skip, group in zip(config.group_skips, config.groups, strict=True) if group.variates}
    linked = itertools.count()
    for stage, below in zip(config.stages, [*config.stages[1:], None], strict=True):
        pool, count = _pool(config, stage, below), stage.extra_bottom_up + stage.linked_blocks
        for i in range(count):
            skip = next(linked) if i >= stage.extra_bottom_up else None
            ends = skip == max(read)
            pools = i == count - 1 and not ends
            cells = not (ends and config.skips == "raw")
            yield skip, BottomUpBlock(config, stage, skip=skip in read, pool=pool if pools else None, cells=cells)
            if ends:
                return


def _pool(config: ModelConfig, stage: StageConfig, below: StageConfig | None) -> Pool | None:
    if below is None or below.resolution == stage.resolution:
        return None
    stride, projected = stage.resolution // below.resolution, config.resample == "projected"
    return Pool(stage.width, below.width, stride, projected=projected, init=config.init)


def _depth(config: ModelConfig) -> int:
    """Count the blocks whose number scales this path's first weights: as published, latent groups or its own blocks."""
    if config.init == "xavier":
        return len(config.groups)
    blocks = sum(stage.extra_bottom_up + stage.linked_blocks for stage in config.stages)
    last_is_empty = config.skips == "raw" and config.stages[-1].linked_blocks > 0
    return max(1, blocks - last_is_empty)
