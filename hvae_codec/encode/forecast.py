"""What encoding will take in bytes and time, told by up to 64 images that are really encoded, in memory."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from ..data.sources import Images
from ..model.hvae import HVAE
from ..progress import Progress
from ..storage.location import LocationLike
from ..store.narrowing import narrowed, with_room
from ..store.quantiser import check_clipped
from ..store.size_forecast import latent_bytes, table_bytes
from ..store.spec import StoreSpec
from .append import plan_append
from .image_encoder import ImageEncoder, joined
from .old_store import wide_codes_of

SAMPLE = 64  # images that are encoded, evenly spaced
_WARM_UP = 4  # images before the first that are timed: what is made once takes longer than they do


@dataclass(frozen=True, kw_only=True)
class EncodeForecast:
    """What encoding some images into a store will take."""

    images: int  # to encode
    measured_on: int  # of these
    row_groups: int  # of the whole store
    row_group_size: int  # images
    latent_bytes: int  # of the images to encode
    table_bytes: int  # of all else in the store: names, labels, metadata, what it carries of its model
    old_latent_bytes: int = 0  # that an appended store takes over
    seconds: float  # to encode all of them on this machine

    @property
    def bytes(self) -> int:
        """Bytes of the whole store."""
        return self.latent_bytes + self.table_bytes + self.old_latent_bytes


def forecast_encoding(
    encoder: ImageEncoder,
    spec: StoreSpec,
    *,
    old_latent_bytes: int = 0,
    widens: bool = True,
    progress: Progress | None = None,
) -> EncodeForecast:
    """Encode up to 64 of the encoder's images, and tell from them what the store of `spec` will take.

    Arrays that have no room for a code are wider then, if it `widens`. Raises what encoding does: `DataError` on images
    that cannot be read, `ClippedError` on latents that are too large for the codec or, otherwise, for their array.
    """
    images = len(encoder.source)
    sample = replace(encoder, source=encoder.source.evenly(SAMPLE))
    count = len(sample.source)
    sample.encode_range(range(min(_WARM_UP, count)))
    start, parts = time.perf_counter(), []
    for part in sample.batches(range(count)):
        parts.append(part)
        if progress is not None:
            progress(min(len(parts) * encoder.batch_size, count), count)
    seconds = time.perf_counter() - start
    stored, _ = joined(parts)
    check_clipped(spec.codec, stored, "the images looked at")
    if widens:
        spec = replace(spec, dtypes=with_room(spec.array_dtypes, stored))
    stored = narrowed(stored, spec.array_dtypes, names=sample.source.names)
    return EncodeForecast(
        images=images,
        measured_on=count,
        row_groups=len(spec.row_groups),
        row_group_size=spec.row_group_size,
        latent_bytes=latent_bytes(spec, stored, images),
        table_bytes=table_bytes(spec),
        old_latent_bytes=old_latent_bytes,
        seconds=seconds * _batches(encoder, images) / _batches(encoder, count),
    )


def _batches(encoder: ImageEncoder, images: int) -> float:
    """Count batches; on a GPU, part of one takes as long as a whole one, elsewhere its share."""
    batches = images / encoder.batch_size
    return float(np.ceil(batches)) if encoder.batch_coder.on_gpu else batches


def forecast_append(
    model: HVAE,
    images: Images,
    path: LocationLike,
    *,
    out: LocationLike | None = None,
    prefix: str = "",
    batch_size: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> EncodeForecast:
    """Tell what adding `images` to the store at `path` will take; raises what `append` does before it writes."""
    old, encoder, spec = plan_append(model, images, path, out=out, prefix=prefix, batch_size=batch_size, seed=seed)
    latents = tuple(f"z{resolution}/c/" for resolution in old.resolutions)
    taken_over = sum(size for key, size in old.path.files() if key.startswith(latents))
    with wide_codes_of(old.path):
        return forecast_encoding(encoder, spec, old_latent_bytes=taken_over, widens=False, progress=progress)
