"""Stored numbers to images by a decoder alone, without the model that it is of."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import StoreError
from ..model.decoder import Decoder, decoder_hash
from ..model.precision import full_float32
from ..store.columns import Columns
from ..store.quantiser import Codec
from ..store.reader import Store
from .coder import group_columns, to_tensors
from .packing import Packing


class LatentDecoder:
    """Decodes batches to what `LatentCoder` decodes them to, but for float rounding."""

    def __init__(
        self, decoder: Decoder, columns: Columns, codec: Codec, steps: Mapping[int, NDArray[np.float32]]
    ) -> None:
        """`columns` are whole variates; `steps`: latent resolution to quantiser steps, [columns]."""
        self.model, self.codec = decoder, codec
        self.groups = group_columns(columns, steps, decoder.device)
        self.packing = Packing(columns)

    @classmethod
    def of_store(cls, store: Store, decoder: Decoder) -> LatentDecoder:
        """What decodes `store`; raises `StoreError` if `decoder` is not the one that the store carries."""
        own, known = decoder_hash(decoder), store.metadata.model.decoder_hash
        if own != known:
            raise StoreError(f"{store.path} carries decoder {known[:12]}, and this one is {own[:12]}; give its own")
        return cls(decoder, store.columns, store.codec, store.steps)

    @torch.no_grad()
    @full_float32()
    def decode(self, stored: Mapping[int, NDArray[np.generic]]) -> Tensor:
        """Expected images of stored numbers, in the likelihood's scale ([-1, 1]), float32 [B, C, H, W]."""
        return self.model.likelihood.mean(self.output(to_tensors(stored, self.model.device)))

    @torch.no_grad()
    @full_float32()
    def output(self, numbers: Mapping[int, Tensor]) -> Tensor:
        """Parameters of the output distribution, [B, out_channels, H, W], of stored numbers on the device."""
        z = {
            index: self.codec.decode(numbers[group.resolution][:, group.columns], group.steps)
            for index, group in self.groups.items()
        }
        return self.model(z, len(next(iter(numbers.values()))))

    def decode_pixels(self, stored: Mapping[int, NDArray[np.generic]]) -> Tensor:
        """Expected images of stored numbers, uint8 [B, C, H, W]."""
        return self.model.likelihood.to_pixels(self.decode(stored))
