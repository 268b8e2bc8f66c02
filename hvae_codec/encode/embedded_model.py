"""A store's own copy of its model: the weights, as the bytes of a safetensors file, in the array `model`.

    metadata        model.config, model.hash, model.embedded = true
    model  [byte]   uint8, the safetensors file

It is the whole model, the bottom-up path too: the hash covers every weight, so that with fewer it could not be checked;
and with all of them, images can be encoded again or added. Loading checks the hash, always.
"""

from __future__ import annotations

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ..config import config_from_dict
from ..errors import HvaeCodecError, StoreError
from ..model.checkpoint import fill_model, model_hash
from ..model.hvae import HVAE
from ..store.reader import Store
from ..store.schema import WEIGHTS

_REMEDY = "restore the store from a copy or give the run as --model"


def model_weights(model: HVAE) -> bytes:
    """All weights of `model` as a safetensors file: the same bytes for the same weights."""
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()})


def load_embedded(store: Store, device: str | torch.device = "cpu") -> HVAE | None:
    """The model that `store` carries, in evaluation state, weights on `device`; None if it carries none.

    Raises `StoreError` if the weights are damaged, or are not those of the model that encoded the images.
    """
    if not store.metadata.model.embedded:
        return None
    weights = store.arrays.read(WEIGHTS).tobytes()
    try:
        model = HVAE(config_from_dict({"model": store.config}).model)
        fill_model(model, load(weights), f"{store.path}/{WEIGHTS}")
    except (SafetensorError, HvaeCodecError) as error:
        raise StoreError(f"{store.path}: the model in it is damaged ({error}); {_REMEDY}") from None
    if model_hash(model.requires_grad_(False)) != store.model_hash:
        raise StoreError(f"{store.path}: the model in it is not the one that encoded the images; {_REMEDY}")
    return model.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
