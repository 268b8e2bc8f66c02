"""What decoding takes of a model: z of the kept variates in, parameters of the output distribution out.

    state <- learned start
    for each latent group:   state -> unpool -> state + r -> state + W z -> cells

There is no bottom-up path, no posterior and no prior: whole variates are kept or pruned, and what pruned ones add to
the state, at their prior's mean, is folded into the residual term r (see `folding`). A group that nothing is kept of is
a residual cell like the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..config import ModelConfig, StageConfig
from .blocks import Cell, Conv, OutputConv, Unpool, residual_cells
from .checkpoint import fill_model, weights_hash
from .folding import folded_residual
from .hvae import HVAE
from .likelihood import make_likelihood
from .recorded import Recording
from .top_down import TopDownBlock, unpool_between


class DecoderBlock(nn.Module):
    """One latent group: unpool, residual term, what the kept variates add, residual cells."""

    def __init__(self, config: ModelConfig, stage: StageConfig, kept: int, *, unpool: Unpool | None) -> None:
        super().__init__()
        width = stage.width
        self.unpool = unpool
        self.residual_cell = Cell(config, width, int(width * stage.bottleneck), width, stage.kernel)
        self.z_conv = Conv(kept, width, 1, bias=False) if kept else None
        self.cells = residual_cells(config, stage, len(config.groups))

    def forward(self, state: Tensor, z: Tensor | None) -> Tensor:
        """Return the state [B, width, H, W] after the kept variates' z, [B, kept, H, W]; None if there are none."""
        state = self.residual_cell(state if self.unpool is None else self.unpool(state))
        return self.cells(state if self.z_conv is None else state.add_(self.z_conv(z)))


class Decoder(nn.Module):
    """All latent groups, from the lowest resolution to the highest, and the output convolution."""

    def __init__(self, config: ModelConfig, kept: Sequence[int]) -> None:
        """`config` is the whole model's, `kept` how many variates are kept of each group, in top-down order."""
        super().__init__()
        self.config = config
        self.likelihood = make_likelihood(config)
        self.recording = Recording()
        """Which work on its batches is recorded as a CUDA graph."""
        lowest, highest = config.top_down_stages[0], config.stages[0]
        self.start = nn.Parameter(torch.zeros(1, lowest.width, lowest.resolution, lowest.resolution))
        self.blocks = nn.ModuleList(_blocks(config, kept))
        self.output_conv = OutputConv(
            highest.width,
            self.likelihood.out_channels,
            config.output_kernel,
            gain=config.output_gain,
            init=config.init,
        )

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.start.device

    def forward(self, z: Mapping[int, Tensor], batch: int) -> Tensor:
        """Compute the parameters of the output distribution, [batch, out_channels, H, W].

        `z` is of each latent group that something is kept of, by its number: float32 [batch, kept, H, W].
        """
        state = self.start.expand(batch, -1, -1, -1)
        for index, block in enumerate(self.blocks):
            state = block(state, z.get(index))
        return self.output_conv(state)


def _blocks(config: ModelConfig, kept: Sequence[int]) -> Iterator[DecoderBlock]:
    """Yield the blocks of the latent groups, in top-down order."""
    left, stages = iter(kept), config.top_down_stages
    for stage, below in zip(stages, [None, *stages[:-1]], strict=True):
        for number in range(stage.latent_groups):
            unpool = unpool_between(config, stage, below) if number == 0 else None
            yield DecoderBlock(config, stage, next(left), unpool=unpool)


def load_decoder(config: ModelConfig, kept: Sequence[int], weights: dict[str, Tensor], source: str) -> Decoder:
    """Make a decoder, in evaluation state, of its `weights`; raises `ModelError` as `fill_model` does."""
    with torch.device("meta"):
        decoder = Decoder(config, kept)
    fill_model(decoder, weights, source, assign=True)
    return decoder.eval().requires_grad_(False)


@torch.no_grad()
def decoder_of(model: HVAE, keep: Sequence[NDArray[np.bool_]]) -> Decoder:
    """Make what decodes the latents of `model` if the variates are stored that `keep` says, bool [variates] per group.

    The decoder is on the model's device, and shares those weights with it that are the same.
    """
    top_down = model.top_down.state_dict()
    weights = {name: tensor for name, tensor in top_down.items() if not name.startswith("blocks.")}
    for index, (block, kept) in enumerate(zip(model.top_down.blocks, keep, strict=True)):
        own = _block_weights(cast(TopDownBlock, block), torch.from_numpy(kept).to(model.device))
        weights |= {f"blocks.{index}.{name}": tensor for name, tensor in own.items()}
    return load_decoder(model.config, [int(kept.sum()) for kept in keep], weights, "the model")


def _block_weights(block: TopDownBlock, kept: Tensor) -> dict[str, Tensor]:
    """Return the weights of the decoder's block, by their names in it."""
    own, last = block.state_dict(), f"residual_cell.convs.{len(block.prior_cell.convs) - 1}"
    weights = {name: tensor for name, tensor in own.items() if name.startswith(("unpool.", "cells."))}
    for name, tensor in block.prior_cell.state_dict().items():
        weights[f"residual_cell.{name}"] = tensor
    if block.variates:  # else the prior cell's last convolution is the residual term alone already
        weight, bias = folded_residual(block, kept)
        weights |= {f"{last}.weight": weight, f"{last}.bias": bias + own["z_conv.bias"]}
    if kept.any():
        weights["z_conv.weight"] = own["z_conv.weight"][:, kept]
    return weights


def decoder_hash(decoder: Decoder) -> str:
    """Compute SHA-256 (hex) of the configuration and every weight, as `model_hash` does of a model."""
    return weights_hash(decoder.config, decoder.state_dict())
