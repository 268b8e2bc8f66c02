"""Compares a model or stores with image codecs on the same images: rate, distortion and speed of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from ..config import ModelConfig, config_from_dict
from ..data.name_digests import find_digests, name_digests
from ..data.sources import Images, ImageSource, as_source
from ..encode.array_dtypes import array_dtypes
from ..encode.coder import LatentCoder, quantiser_steps
from ..encode.comparison import compare
from ..encode.encoded_store import EncodedStore
from ..errors import DataError, UsageError
from ..model.checkpoint import model_hash
from ..model.decoder import Decoder
from ..model.hvae import HVAE
from ..model.likelihood import make_likelihood
from ..progress import Progress
from ..prune.kl_stats import KLStats
from ..prune.mask import LatentMask
from ..store.compressors import ZSTD
from ..store.disk_use import disk_use
from ..store.quantiser import make_codec
from .image_codecs import QUALITIES, image_codecs, missing_codecs
from .rate_distortion import Batch, RateMeter, Way, one_thread
from .reconstruction import SizeMeter
from .ways import Files, Latents, Stored

STEPS = (0.5, 1.0, 2.0, 4.0)
LARGEST_BATCH = 1 << 22  # pixels


@dataclass(frozen=True, kw_only=True)
class ModelCurve:
    """A model at several masks and quantiser steps."""

    model: HVAE  # what encodes and decodes
    stats: KLStats  # that its masks and steps are from
    masks: Mapping[str, LatentMask]  # by the names that rows have
    steps: Sequence[float] = STEPS  # in average posterior stds or, of a run with codes, learned steps

    def ways(self) -> Iterator[Way]:
        """Yield the model at each mask and step, sizes falling; raises `UsageError` if a step or mask cannot be."""
        for rule, mask in self.masks.items():
            for step in sorted(set(self.steps)):
                codec = make_codec("int", step)
                coder = LatentCoder(self.model, mask, codec, quantiser_steps(mask, codec, self.stats))
                yield Latents(coder, rule, step, SizeMeter(ZSTD, array_dtypes(mask, codec, self.stats)))


@dataclass(frozen=True)
class OpenedStore:
    """A store, and what decodes it."""

    store: EncodedStore  # holds the images that are measured
    decoder: HVAE | Decoder  # its model, or the decoder that it carries

    @property
    def config(self) -> ModelConfig:
        """The configuration of the model that made it."""
        return config_from_dict({"model": self.store.config}).model


@dataclass(frozen=True)
class Bench:
    """What `bench` measured."""

    table: pd.DataFrame  # one row for each way to compress; `rate_distortion.COLUMNS` says what is in it
    about: dict[str, Any]  # how it was measured, plain data


def bench(
    images: Images,
    curve: ModelCurve | None = None,
    stores: Sequence[OpenedStore] = (),
    *,
    qualities: Sequence[int] = QUALITIES,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Bench:
    """Measure a model, stores, and all image codecs that Pillow has here, on the same `images`.

    Each image is encoded and decoded by each, alone in a file by image codecs; the original is the image as the model
    sees it: cropped, resized, grey or RGB, and without the low bits of a model of fewer than 8. Speeds are of one core.
    Raises `UsageError` if there is neither model nor store, they are of images of other bits, or images are neither
    grey nor RGB; `DataError` if there are no images, they do not fit, or a store does not hold them as they are.
    """
    source = as_source(images)
    config = _config(curve, stores)
    if not len(source):
        raise DataError("there are no images to measure; give at least one")
    codecs = image_codecs(source.channels, qualities)
    ways: list[Way] = [*(curve.ways() if curve else ()), *(_stored(source, opened) for opened in stores)]
    ways += [Files(codec, source.channels) for codec in codecs]
    meters = [RateMeter(way) for way in ways]
    with one_thread():
        for batch in _batches(source, config, batch_size or _fitting(source.size)):
            for number, meter in enumerate(meters, 1):
                meter.add(batch)
                if progress:
                    done = batch.numbers.start + len(batch.numbers) * number // len(meters)
                    progress(done, len(source))
    table = pd.DataFrame([meter.row(config.image_dims) for meter in meters])
    numbers = [name for name in table if name not in ("kind", "method", "setting", "exact")]
    table = table.astype(dict.fromkeys(numbers, float))  # a column of None alone would be one of objects
    return Bench(table, _about(source, config, curve, stores))


def held_by(source: ImageSource, stores: Sequence[EncodedStore]) -> ImageSource:
    """Select the images whose names all `stores` have; raises `DataError` if there are none."""
    names = name_digests(source.names)
    for store in stores:
        there = np.flatnonzero(find_digests(names, name_digests(store.names)) >= 0)
        if not len(there):
            kind = "held-out images" if source.held_out else "images"
            raise DataError(f"{store.path} has none of these {len(source):,} {kind}; give --split train or all")
        source, names = source.subset(there), names[there]
    return source


def _stored(source: ImageSource, opened: OpenedStore) -> Stored:
    """Find the rows of the images; raises `DataError` if one is not in the store as it is."""
    found = compare(source, opened.store)
    if (found.rows < 0).any():
        missing = int((found.rows < 0).sum())
        name = source.names[int((found.rows < 0).argmax())]
        raise DataError(
            f"{opened.store.path} does not hold {missing:,} of the {len(source):,} images as they are now, such as "
            f"{name}; bring it up to date with hvae-codec sync first"
        )
    return Stored(opened.store, found.rows.tolist(), opened.decoder, disk_use(opened.store))


def _config(curve: ModelCurve | None, stores: Sequence[OpenedStore]) -> ModelConfig:
    """Return the model's configuration; raises `UsageError` if several see different pixels."""
    configs = [*([curve.model.config] if curve else []), *(opened.config for opened in stores)]
    if not configs:
        raise UsageError("there is neither a model nor a store to measure; give one")
    bits = {config.pixel_bits for config in configs}
    if len(bits) > 1:
        found = " and ".join(map(str, sorted(bits)))
        raise UsageError(f"the models see {found} bits per channel; compare models and stores of the same bits")
    return configs[0]


def _batches(source: ImageSource, config: ModelConfig, batch_size: int) -> Iterator[Batch]:
    """Read the images batch by batch, none ahead: threads that decode files would count as the codecs' time."""
    for first in range(0, len(source), batch_size):
        numbers = range(first, min(first + batch_size, len(source)))
        images = source.read(numbers)
        yield Batch(numbers, images, _seen(images, config))


def _fitting(size: int) -> int:
    """Choose images per batch so that the many copies that comparing makes stay small.

    >>> _fitting(32), _fitting(256), _fitting(1024), _fitting(8192)
    (64, 64, 4, 1)
    """
    return max(1, min(64, LARGEST_BATCH // size**2))


def _seen(images: NDArray[np.uint8], config: ModelConfig) -> NDArray[np.uint8]:
    seen: NDArray[np.uint8] = make_likelihood(config).quantised(torch.from_numpy(images)).numpy()
    return seen


def _about(
    source: ImageSource, config: ModelConfig, curve: ModelCurve | None, stores: Sequence[OpenedStore]
) -> dict[str, Any]:
    return {
        "images": len(source),
        "held_out": source.held_out,
        "size": source.size,
        "channels": source.channels,
        "bits": config.pixel_bits,
        "source": source.fingerprint,
        "model_hash": model_hash(curve.model) if curve else None,
        "model_bytes": _weights_bytes(curve.model) if curve else None,
        "device": str(curve.model.device) if curve else None,
        "stores": {str(opened.store.path): len(opened.store) for opened in stores},
        "missing_codecs": list(missing_codecs()),
    }


def _weights_bytes(model: HVAE) -> int:
    return sum(weights.numel() * weights.element_size() for weights in model.parameters())
