"""The parts of both paths: convolution, residual cell, pool, unpool (figures 4 and 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import Init, ModelConfig, StageConfig
from .kernels.activated_conv import Kernel, activated_conv, kernel_of


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


def conv(inputs: int, outputs: int, kernel: int = 1, *, init: Init, stride: int = 1, weight_scale: float = 1.0) -> Conv:
    """Make a convolution with weights as `init` says times `weight_scale`, zero biases; stride 1 preserves H × W."""
    layer = Conv(inputs, outputs, kernel, stride, padding=kernel // 2 if stride == 1 else 0)
    _initialise(layer, init, weight_scale)
    return layer


def _initialise(layer: Conv, init: Init, weight_scale: float = 1.0) -> None:
    if layer.weight.is_meta:
        return
    if init == "xavier":  # the framework's own are uniform within 1/sqrt(inputs · k · k)
        nn.init.xavier_uniform_(layer.weight)
    with torch.no_grad():
        layer.weight.mul_(weight_scale)
    nn.init.zeros_(layer.bias)


class Cell(nn.Module):
    """Bottleneck cell: SiLU or GELU before each convolution, [B, inputs, H, W] -> [B, outputs, H, W].

    inputs -> middle, `middle_layers` times middle -> middle (k × k), middle -> outputs; a cell whose inputs are as many
    as its outputs adds its input. The first convolution has the framework's weights and, if `config.init` is `xavier`,
    biases, as the published models do.
    """

    def __init__(
        self, config: ModelConfig, inputs: int, middle: int, outputs: int, kernel: int, last_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.residual, self.activation, init = inputs == outputs, config.activation, config.init
        ends = 1 if config.pointwise_ends else kernel
        first = Conv(inputs, middle, ends, padding=ends // 2)
        if init == "uniform":
            _initialise(first, init)
        middles = [conv(middle, middle, kernel, init=init) for _ in range(config.middle_layers)]
        self.convs = nn.ModuleList([first, *middles, conv(middle, outputs, ends, init=init, weight_scale=last_scale)])

    def forward(self, x: Tensor) -> Tensor:
        """Apply the convolutions, and add the input if the cell is residual."""
        y = self.before_last([x], kernel_of(self.convs[-1]))[0]
        return y.add_(x) if self.residual else y

    def before_last(self, inputs: Sequence[Tensor], *heads: Kernel, sizes: Sequence[int] | None = None) -> list[Tensor]:
        """Apply all but the last convolution to the joined `inputs`, then each of `heads` in the last one's place.

        `sizes` splits the outputs of a single head, see `activated_conv`.
        """
        hidden = list(inputs)
        for layer in self.convs[:-1]:
            hidden = activated_conv(hidden, [kernel_of(layer)], activation=self.activation)
        return activated_conv(hidden, heads, sizes, activation=self.activation)


def residual_cells(config: ModelConfig, stage: StageConfig, depth: int) -> nn.Sequential:
    """Make the residual cells of a block of either path, in which the signal passes `depth` blocks."""
    scale = 1.0 / math.sqrt(depth) if config.stable_init else 1.0
    width, middle = stage.width, int(stage.width * stage.bottleneck)
    cells = (Cell(config, width, middle, width, stage.kernel, scale) for _ in range(config.cells_per_block))
    return nn.Sequential(*cells)


class Pool(nn.Module):
    """Strided convolution without overlap, then LeakyReLU: [B, inputs, H, W] -> [B, outputs, H/s, W/s].

    Not `projected`: average pooling, which has no weights; channels that the outputs have more are zeros.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, *, projected: bool = True, init: Init = "xavier"
    ) -> None:
        super().__init__()
        self.stride, self.added = stride, outputs - inputs
        self.conv = conv(inputs, outputs, stride, stride=stride, init=init) if projected else None

    def forward(self, x: Tensor) -> Tensor:
        """Reduce height and width by the stride."""
        if self.conv is not None:
            return F.leaky_relu(self.conv(x), 0.1)
        pooled = F.avg_pool2d(x, self.stride)
        return F.pad(pooled, (0, 0, 0, 0, 0, self.added)) if self.added else pooled


class Unpool(nn.Module):
    """1 × 1 convolution, LeakyReLU, nearest upsampling, learned bias: [B, inputs, H, W] -> [B, outputs, sH, sW].

    The bias, [1, outputs, sH, sW], ties a trained model to one image size; not `biased`: there is none. Not
    `projected`: upsampling and bias only, of the first inputs if the outputs are fewer.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        resolution: int,
        *,
        projected: bool = True,
        biased: bool = True,
        init: Init = "xavier",
    ) -> None:
        super().__init__()
        self.stride, self.outputs = stride, outputs
        self.conv = conv(inputs, outputs, init=init) if projected else None
        self.bias = nn.Parameter(torch.zeros(1, outputs, resolution, resolution)) if biased else None

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge height and width by the stride."""
        x = x[:, : self.outputs] if self.conv is None else F.leaky_relu(self.conv(x), 0.1)
        x = F.interpolate(x, scale_factor=float(self.stride), mode="nearest")
        return x if self.bias is None else x + self.bias


class OutputConv(Conv):
    """The last convolution; with `gain` its inputs are multiplied and shifted per channel first."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, gain: bool, init: Init) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2)
        _initialise(self, init)
        self.gain = nn.Parameter(torch.ones(1, inputs, 1, 1)) if gain else None
        self.shift = nn.Parameter(torch.zeros(1, inputs, 1, 1)) if gain else None

    def scaled(self, x: Tensor) -> Tensor:
        """Compute the convolution's inputs from the last state `x`, [B, inputs, H, W]."""
        return x if self.gain is None or self.shift is None else torch.addcmul(self.shift, x, self.gain)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the parameters of the output distribution, [B, outputs, H, W]."""
        return super().forward(self.scaled(x))
