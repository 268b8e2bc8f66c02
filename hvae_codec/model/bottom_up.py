"""The bottom-up path: an image to the skip activations that the posteriors read."""

from __future__ import annotations

import operator

from torch import Tensor, nn

from ..config import ModelConfig, StageConfig
from .activations import RunBlock
from .blocks import Pool, conv, residual_cells


class BottomUpBlock(nn.Module):
    """Residual cells; a linked block also projects a skip, and pools if it is the last of its stage."""

    def __init__(self, config: ModelConfig, stage: StageConfig, *, linked: bool, pool: Pool | None) -> None:
        super().__init__()
        self.state_size = stage.state_size
        self.cells = residual_cells(config, stage)
        self.skip = conv(stage.width, stage.width) if linked else None
        self.pool = pool

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the activations for the next block, and the skip (taken before the pool)."""
        x = self.cells(x)
        skip = self.skip(x) if self.skip is not None else None
        return (self.pool(x) if self.pool is not None else x), skip


class BottomUp(nn.Module):
    """All bottom-up blocks, from the highest resolution to the lowest."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_conv = conv(config.channels, config.stages[0].width, config.input_kernel)
        self.run_block: RunBlock = operator.call
        pairs = zip(config.stages, [*config.stages[1:], None], strict=True)
        self.blocks = nn.ModuleList(block for stage, below in pairs for block in _stage_blocks(config, stage, below))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the linked blocks' skips [B, width, H, W] for input [B, C, H, W], in this path's order."""
        x = self.input_conv(x)
        skips = []
        for block in self.blocks:
            x, skip = self.run_block(block, x)
            if skip is not None:
                skips.append(skip)
        return skips


def _stage_blocks(config: ModelConfig, stage: StageConfig, below: StageConfig | None) -> list[BottomUpBlock]:
    pool = None
    if below is not None and below.resolution < stage.resolution:
        stride = stage.resolution // below.resolution
        pool = Pool(stage.width, below.width, stride, projected=config.resample == "projected")
    count = stage.extra_bottom_up + stage.linked_blocks
    return [
        BottomUpBlock(config, stage, linked=i >= stage.extra_bottom_up, pool=pool if i == count - 1 else None)
        for i in range(count)
    ]
