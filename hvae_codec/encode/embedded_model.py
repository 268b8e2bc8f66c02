"""What a store carries of its model: weights, as the bytes of a safetensors file, in the array `model`.

    metadata        model.config, model.hash, model.embedded = true, or "decoder" and model.decoder_hash
    model  [byte]   uint8, the safetensors file

With the whole model, the bottom-up path too, images can be encoded again or added. The decoder alone is less than half
of it, and has a hash of its own: that of the model covers every weight. Loading checks the hash, always.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from ..config import ModelConfig, config_from_dict
from ..data.sources import ImageSource
from ..errors import HvaeCodecError, ModelError, StoreError, UsageError
from ..model.checkpoint import fill_model, model_hash
from ..model.decoder import Decoder, decoder_hash, decoder_of, load_decoder
from ..model.hvae import HVAE
from ..prune.mask import LatentMask
from ..store.columns import Granularity
from ..store.metadata import Embedded
from ..store.reader import Store
from ..store.schema import WEIGHTS
from .coder import LatentCoder, mask_of, to_tensors
from .latent_decoder import LatentDecoder

CHECKED_IMAGES = 4  # images that a decoder must decode as its model does, before a store carries it
TOLERANCE = 1e-5
"""By how much the network's output may be another one, of its largest value. Rounding is 7e-7 with 84 latent groups."""

_REMEDY = "restore the store from a copy or give the run as --model"


def check_granularity(embedded: Embedded, granularity: Granularity) -> None:
    """Raise `UsageError` if a store of `granularity` cannot carry that of its model."""
    if embedded == "decoder" and granularity != "variate":
        raise UsageError(
            "--embed decoder needs whole variates, and this mask keeps single positions, whose variates take the "
            "prior elsewhere; give --embed whole"
        )


def weights_to_embed(coder: LatentCoder, embedded: Embedded, images: ImageSource) -> tuple[bytes, str]:
    """The bytes that a store of `coder` carries of its model, and the hash of its decoder if that is what it carries.

    A decoder must decode the first of `images` as the model does: `ModelError` if it does not.
    """
    if embedded != "decoder":
        return model_weights(coder.model) if embedded else b"", ""
    decoder = decoder_of(coder.model, coder.mask.keep)
    _check_equal(
        coder,
        LatentDecoder(decoder, coder.columns, coder.codec, coder.steps),
        images.read(range(len(images))[:CHECKED_IMAGES]),
    )
    return model_weights(decoder), decoder_hash(decoder)


def _check_equal(coder: LatentCoder, decoder: LatentDecoder, images: NDArray[np.uint8]) -> None:
    """Raise `ModelError` if `decoder` decodes uint8 `images` [B, C, H, W] to something else than `coder`."""
    likelihood = coder.model.likelihood
    numbers = to_tensors(coder.encode(torch.from_numpy(images)), coder.model.device)
    expected, found = coder.output(numbers), decoder.output(numbers)
    share = ((found - expected).abs().max() / expected.abs().max()).item()
    pixels = [likelihood.to_pixels(likelihood.mean(output)).int() for output in (expected, found)]
    levels = int((pixels[1] - pixels[0]).abs().max())
    if not (share <= TOLERANCE and levels <= 1):
        raise ModelError(
            f"the decoder made of this model decodes to other values than the model, by {share:.2g} of the largest one "
            f"and {levels} levels; give --embed whole"
        )


def model_weights(model: nn.Module) -> bytes:
    """All weights of `model` as a safetensors file: the same bytes for the same weights."""
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()})


def weights_again(store: Store, model: HVAE) -> bytes:
    """What `store` carries of its model, made anew of `model`; `StoreError` if that is not what it was."""
    record = store.metadata.model
    if model_hash(model) != record.hash:
        raise StoreError(f"{store.path} carries another model than this one; give the run it was made with as --model")
    if record.embedded != "decoder":
        return model_weights(model)
    decoder = decoder_of(model, LatentMask.from_dict(store.mask).keep)
    if decoder_hash(decoder) != record.decoder_hash:
        raise StoreError(f"{store.path} carries another decoder than this model gives now; restore it from a copy")
    return model_weights(decoder)


def load_embedded(store: Store, device: str | torch.device = "cpu") -> HVAE | None:
    """The whole model that `store` carries, in evaluation state, weights on `device`; None if it carries none.

    Raises `StoreError` if the weights are damaged, or are not those of the model that encoded the images.
    """
    if store.metadata.model.embedded != "whole":
        return None
    try:
        weights = store.arrays.read(WEIGHTS).tobytes()
        model = HVAE(_config(store))
        fill_model(model, load(weights), f"{store.path}/{WEIGHTS}")
    except (SafetensorError, HvaeCodecError) as error:
        raise StoreError(f"{store.path}: the model in it is damaged ({error}); {_REMEDY}") from None
    if model_hash(model.requires_grad_(False)) != store.model_hash:
        raise StoreError(f"{store.path}: the model in it is not the one that encoded the images; {_REMEDY}")
    return model.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def load_embedded_decoder(store: Store, device: str | torch.device = "cpu") -> Decoder | None:
    """The decoder that `store` carries alone, in evaluation state, weights on `device`; None if it carries none.

    Raises `StoreError` if the weights are damaged, or are not those that were put in.
    """
    if store.metadata.model.embedded != "decoder":
        return None
    kept = [int(keep.sum()) for keep in mask_of(store).keep]
    try:
        weights = store.arrays.read(WEIGHTS).tobytes()
        decoder = load_decoder(_config(store), kept, load(weights), f"{store.path}/{WEIGHTS}")
    except (SafetensorError, HvaeCodecError) as error:
        raise StoreError(f"{store.path}: the decoder in it is damaged ({error}); {_REMEDY}") from None
    if decoder_hash(decoder) != store.metadata.model.decoder_hash:
        raise StoreError(f"{store.path}: the decoder in it is not the one that was put in; {_REMEDY}")
    return decoder.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _config(store: Store) -> ModelConfig:
    return config_from_dict({"model": store.config}).model
