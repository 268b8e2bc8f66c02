"""Tells the families of published hierarchical VAEs apart, by the names of their tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from ..errors import ModelError
from .efficient_vdvae import STATE_KEYS
from .torch_file import UnsafeFileError, read_torch_file, texts_in

Family = Literal["VDVAE", "Efficient-VDVAE"]

_MARKS: dict[Family, str] = {
    "VDVAE": r"encoder\.in_conv\.|decoder\.(gain$|bias_xs\.|out_net\.out_conv\.|dec_blocks\.\d+\.(enc|resnet)\.)",
    "Efficient-VDVAE": rf"(bottom_up|top_down)\.levels_|({'|'.join(STATE_KEYS.values())})$",
}
_OTHERS = {
    "an NVAE checkpoint (github.com/NVlabs/NVAE)": r"(enc|dec)_(tower|sampler)\.|prior_ftr0$",
    "a QRes-VAE or QARV checkpoint (github.com/duanzhiihao/lossy-vae)": r"lmb_embedding\.|.*\.resnet_front\.",
}
_OPTIMIZER = {"state", "param_groups"}


def read_checkpoint(path: Path) -> tuple[Family, object]:
    """Read a checkpoint, and tell of which family it is.

    Raises `ModelError` if it cannot be read, or is of a family that cannot be imported.
    """
    try:
        content = read_torch_file(path)
    except UnsafeFileError:
        _refuse_others(texts_in(path), path)  # some published files hold settings as objects
        raise
    names = list(_names_in(content))
    if isinstance(content, Mapping) and content.keys() >= _OPTIMIZER:
        raise ModelError(f"{path} is the state of an optimiser; give the file of the averaged weights, -model-ema.th")
    _refuse_others(names, path)
    for family, mark in _MARKS.items():
        if _has(mark, names):
            return family, content
    what = f"its first name is {names[0]!r:.100}" if names else "it holds no named tensors"
    raise ModelError(f"{path} is not a published checkpoint of VDVAE or Efficient-VDVAE: {what}")


def _names_in(content: object, depth: int = 2) -> Iterator[str]:
    """Yield names of tensors, and of the state dicts that they are in."""
    if isinstance(content, Mapping) and depth:
        for name, value in content.items():
            yield str(name)
            yield from _names_in(value, depth - 1)


def _refuse_others(names: Iterable[str], path: Path) -> None:
    names = list(names)
    for what, mark in _OTHERS.items():
        if _has(mark, names):
            raise ModelError(f"{path} is {what}; only VDVAE and Efficient-VDVAE can be imported")


def _has(mark: str, names: Iterable[str]) -> bool:
    pattern = re.compile(rf"(module\.)?({mark})")
    return any(pattern.match(name) for name in names)
