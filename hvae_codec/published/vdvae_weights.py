"""Renames the tensors of a published VDVAE, and brings their channels into this project's order.

prior's outputs    published  mean [variates], log-std [variates], residual term [width]
                   here       residual term [width], mean [variates], log-std [variates]
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..config import Config, ModelConfig, StageConfig
from ..errors import ModelError
from ..model.hvae import HVAE

Shapes = Mapping[str, torch.Size]
"""Shapes of tensors, by name."""


def convert(state: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Return the weights of `state`, the published tensors without a leading `module.`, by this project's names.

    Raises `ModelError` that names a tensor that is missing, unknown, or of another shape than `config` says.
    """
    model = config.model
    if (model.skips, model.heads, model.output_gain, model.is_slim) != ("raw", "direct", True, False):
        raise ModelError("the configuration is not that of a published VDVAE, whose tensors these are")
    shapes = _own_shapes(model)
    names = {name: published_name(name, shapes) for name in shapes}
    unread = dict(_unread_shapes(model, set(names.values())))
    _check_names(state, {*names.values(), *unread})
    for published, shape in unread.items():
        _weight(state[published], shape, published)
    return {
        name: _in_own_order(name, _weight(state[published], shapes[name], published), model)
        for name, published in names.items()
    }


def _own_shapes(model: ModelConfig) -> Shapes:
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in HVAE(model).state_dict().items()}


def _check_names(state: Mapping[str, Tensor], known: set[str]) -> None:
    missing, unknown = known - state.keys(), state.keys() - known
    if missing:
        raise ModelError(f"there is no tensor {min(missing)}, which the configuration asks for")
    if unknown:
        raise ModelError(f"there is a tensor {min(unknown)} that the configuration has no place for")


def _weight(tensor: Tensor, shape: torch.Size, published: str) -> Tensor:
    if tensor.shape != shape:
        raise ModelError(f"the tensor {published} is {list(tensor.shape)}, the configuration says {list(shape)}")
    return tensor


_CELLS = {"cells.0": "resnet", "prior_cell": "prior", "posterior_cell": "enc"}

_OUTPUT = {"gain": "gain", "shift": "bias", "weight": "out_net.out_conv.weight", "bias": "out_net.out_conv.bias"}


def published_name(name: str, own: Shapes) -> str:
    """Translate one of `own` names to the published one."""
    path, _, rest = name.partition(".")
    if rest.startswith("input_conv."):
        return f"encoder.in_conv.{rest.removeprefix('input_conv.')}"
    if rest.startswith("output_conv."):
        return f"decoder.{_OUTPUT[rest.removeprefix('output_conv.')]}"
    if rest == "start" or rest.endswith("unpool.bias"):
        return f"decoder.bias_xs.{_starts(own).index(name)}"
    _, number, part = rest.split(".", 2)
    # Convolutions are counted from 0 here, and from 1 there.
    part = re.sub(r"\.convs\.(\d+)", lambda found: f".c{int(found[1]) + 1}", part)
    if path == "bottom_up":
        return f"encoder.enc_blocks.{number}.{part.removeprefix('cells.0.')}"
    for cell, published in _CELLS.items():
        part = part.replace(f"{cell}.", f"{published}.")
    return f"decoder.dec_blocks.{number}.{part.replace('z_conv.', 'z_proj.')}"


def _starts(own: Shapes) -> list[str]:
    """List the names of learned starts, from the lowest resolution to the highest."""
    return ["top_down.start", *(name for name in own if name.endswith("unpool.bias"))]


def _unread_shapes(model: ModelConfig, read: set[str]) -> Iterator[tuple[str, torch.Size]]:
    """Yield names and shapes of published bottom-up blocks after the last one that a latent group depends on."""
    for number, stage in enumerate(_bottom_up_stages(model)):
        for layer, shape in enumerate(_block_shapes(stage), 1):
            name = f"encoder.enc_blocks.{number}.c{layer}"
            if f"{name}.weight" not in read:
                yield f"{name}.weight", shape
                yield f"{name}.bias", shape[:1]


def _bottom_up_stages(model: ModelConfig) -> Iterator[StageConfig]:
    """Yield the stage of each published bottom-up block; the last stage's linked block is none."""
    for stage in model.stages:
        blocks = stage.extra_bottom_up + (stage.linked_blocks if stage is not model.stages[-1] else 0)
        yield from [stage] * blocks


def _block_shapes(stage: StageConfig) -> list[torch.Size]:
    width, middle, kernel = stage.width, int(stage.width * stage.bottleneck), stage.kernel
    inner = torch.Size((middle, middle, kernel, kernel))
    return [torch.Size((middle, width, 1, 1)), inner, inner, torch.Size((width, middle, 1, 1))]


def _in_own_order(name: str, weight: Tensor, model: ModelConfig) -> Tensor:
    """Bring the outputs of a prior's last convolution, [2 · variates + width, ...], into this project's order."""
    found = re.fullmatch(r"top_down\.blocks\.(\d+)\.prior_cell\.convs\.(\d+)\.(?:weight|bias)", name)
    if found is None or int(found[2]) != model.middle_layers + 1:
        return weight
    return weight.roll(-2 * model.groups[int(found[1])].variates, dims=0)
