"""The parts of both paths: convolution, residual cell, pool, unpool (figures 4 and 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import ModelConfig, StageConfig
from .kernels.silu_conv import Kernel, kernel_of, silu_conv


class Conv(nn.Conv2d):
    """Convolution that leaves its weights alone on the meta device, where only shapes are wanted."""

    bias: Tensor

    def reset_parameters(self) -> None:
        """Set the framework's default weights and biases."""
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x`, in the weights' type if they are a copy in bfloat16."""
        return super().forward(x.to(self.weight.dtype) if self.weight.dtype == torch.bfloat16 else x)


def conv(inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1, weight_scale: float = 1.0) -> Conv:
    """Make a convolution with Xavier-uniform weights times `weight_scale` and zero biases; stride 1 preserves H × W."""
    layer = Conv(inputs, outputs, kernel, stride, padding=kernel // 2 if stride == 1 else 0)
    if not layer.weight.is_meta:
        nn.init.xavier_uniform_(layer.weight)
        with torch.no_grad():
            layer.weight.mul_(weight_scale)
        nn.init.zeros_(layer.bias)
    return layer


class Cell(nn.Module):
    """Bottleneck cell: SiLU before each convolution, [B, inputs, H, W] -> [B, outputs, H, W].

    inputs -> middle, `middle_layers` times middle -> middle (k × k), middle -> outputs; a cell whose inputs are as many
    as its outputs adds its input. The first convolution has the framework's weights, as the published models do.
    """

    def __init__(
        self, config: ModelConfig, inputs: int, middle: int, outputs: int, kernel: int, last_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.residual = inputs == outputs
        ends = 1 if config.pointwise_ends else kernel
        first = Conv(inputs, middle, ends, padding=ends // 2)
        middles = [conv(middle, middle, kernel) for _ in range(config.middle_layers)]
        self.convs = nn.ModuleList([first, *middles, conv(middle, outputs, ends, weight_scale=last_scale)])

    def forward(self, x: Tensor) -> Tensor:
        """Apply the convolutions, and add the input if the cell is residual."""
        y = self.before_last([x], kernel_of(self.convs[-1]))[0]
        return y.add_(x) if self.residual else y

    def before_last(self, inputs: Sequence[Tensor], *heads: Kernel, sizes: Sequence[int] | None = None) -> list[Tensor]:
        """Apply all but the last convolution to the joined `inputs`, then each of `heads` in the last one's place.

        `sizes` splits the outputs of a single head, see `silu_conv`.
        """
        hidden = list(inputs)
        for layer in self.convs[:-1]:
            hidden = silu_conv(hidden, [kernel_of(layer)])
        return silu_conv(hidden, heads, sizes)


def residual_cells(config: ModelConfig, stage: StageConfig) -> nn.Sequential:
    """Make the residual cells of a block of either path."""
    scale = 1.0 / math.sqrt(len(config.groups)) if config.stable_init else 1.0
    width, middle = stage.width, int(stage.width * stage.bottleneck)
    cells = (Cell(config, width, middle, width, stage.kernel, scale) for _ in range(config.cells_per_block))
    return nn.Sequential(*cells)


class Pool(nn.Module):
    """Strided convolution without overlap, then LeakyReLU: [B, inputs, H, W] -> [B, outputs, H/s, W/s].

    Not `projected`: average pooling, which has no weights and needs inputs = outputs.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, projected: bool = True) -> None:
        super().__init__()
        self.stride = stride
        self.conv = conv(inputs, outputs, stride, stride=stride) if projected else None

    def forward(self, x: Tensor) -> Tensor:
        """Reduce height and width by the stride."""
        return F.avg_pool2d(x, self.stride) if self.conv is None else F.leaky_relu(self.conv(x), 0.1)


class Unpool(nn.Module):
    """1 × 1 convolution, LeakyReLU, nearest upsampling, learned bias: [B, inputs, H, W] -> [B, outputs, sH, sW].

    The bias, [1, outputs, sH, sW], ties a trained model to one image size. Not `projected`: upsampling and bias only,
    which needs inputs = outputs.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, resolution: int, *, projected: bool = True) -> None:
        super().__init__()
        self.stride = stride
        self.conv = conv(inputs, outputs) if projected else None
        self.bias = nn.Parameter(torch.zeros(1, outputs, resolution, resolution))

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge height and width by the stride."""
        if self.conv is not None:
            x = F.leaky_relu(self.conv(x), 0.1)
        return F.interpolate(x, scale_factor=float(self.stride), mode="nearest") + self.bias
