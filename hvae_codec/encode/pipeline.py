"""Images to a store, row group by row group; killed at any moment, the same call goes on where it stopped."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import Config, config_to_dict
from ..errors import DataError, UsageError
from ..images import ImageSource, as_source
from ..model.checkpoint import model_hash
from ..model.hvae import HVAE
from ..prune.kl_stats import KLStats, kl_stats
from ..prune.mask import LatentMask
from ..prune.own_batches import Progress
from .coder import LatentCoder, Stored, quantiser_steps
from .latents import Codec, IntCodec
from .overlap import written_behind
from .store import Store, StoreSpec, StoreWriter, open_store

SAMPLE_IMAGES = 1000
"""Images that statistics are measured on where nobody says how many."""


@dataclass(frozen=True)
class EncodeOptions:
    """How a store is written; what is in it does not depend on these, but for float rounding."""

    batch_size: int = 64
    """Images through the model at once; a row group is cut into these."""
    overwrite: bool = False
    """Whether a store that is already there is replaced."""


def encode(
    model: HVAE,
    images: ImageSource | NDArray[np.uint8] | Tensor,
    path: Path | str,
    *,
    mask: LatentMask,
    codec: Codec | None = None,
    stats: KLStats | None = None,
    options: EncodeOptions | None = None,
    progress: Progress | None = None,
) -> Store:
    """Encode `images` (a source, or uint8 [N, C, H, W]) into a new store at `path`, keeping what `mask` keeps.

    `codec` is integer codes with a step of one posterior std by default; the stds come from `stats`, or from up to
    1,000 of the images. The store is built as `path` + `.partial` and renamed when it is whole. `progress` is called
    with the images done, those of an earlier, interrupted call included, and the images in all.
    Raises `DataError` on images that cannot be read or do not fit, `StoreError` where `path` exists, `UsageError`
    where the mask or the statistics are another model's.
    """
    options = options or EncodeOptions()
    codec = codec or IntCodec()
    source = as_source(images)
    if not len(source):
        raise DataError("there are no images to encode; give at least one")
    stats = stats or kl_stats(model, source.evenly(SAMPLE_IMAGES), batch_size=options.batch_size)
    if stats.model_hash != model_hash(model):
        raise UsageError("the KL statistics were measured with another model; measure them with this one")
    coder = LatentCoder(model, mask, codec, quantiser_steps(mask, codec, stats))
    writer = StoreWriter.create_or_resume(path, store_spec(coder, source), options.overwrite)
    pending = writer.pending()
    done = len(source) - sum(len(writer.rows(r)) for r in pending)
    encoded = _encoded_row_groups(coder, source, writer, pending, options.batch_size)
    # Closed at once, also on an error: its threads must not outlive the call.
    with closing(encoded), closing(written_behind(encoded, lambda item: writer.write(*item))) as written:
        for row_group, _ in written:
            done += len(writer.rows(row_group))
            if progress is not None:
                progress(done, len(source))
    writer.publish()
    return open_store(path)


def store_spec(coder: LatentCoder, source: ImageSource) -> StoreSpec:
    """Everything that is fixed before the first image is encoded."""
    config = coder.model.config
    model_config = config_to_dict(Config(config))["model"]
    run = "" if coder.model.run is None else coder.model.run.as_posix()
    return StoreSpec(
        names=source.names,
        labels=source.labels,
        columns=coder.columns,
        steps=coder.steps,
        codec=coder.codec,
        model={"hash": model_hash(coder.model), "config": model_config, "run": run},
        mask=coder.mask.to_dict(),
        image={"size": config.image_size, "channels": config.channels, "bits": config.bits},
        source={"fingerprint": source.fingerprint, "bytes": source.source_bytes},
    )


def _encoded_row_groups(
    coder: LatentCoder, source: ImageSource, writer: StoreWriter, row_groups: list[int], batch_size: int
) -> Generator[tuple[int, Stored]]:
    """Each row group with its stored numbers. Batches never cross row groups, so a resumed store has the same bytes.

    Stretches of consecutive row groups are read as one, so that files are decoded ahead across them.
    """
    size = writer.images_per_row_group
    for stretch in _stretches(row_groups):
        rows = range(writer.rows(stretch[0]).start, writer.rows(stretch[-1]).stop)
        batches = source.batches(_divisor(size, batch_size), start=rows.start, stop=rows.stop)
        for row_group in stretch:
            count = -(-len(writer.rows(row_group)) // _divisor(size, batch_size))
            parts = [coder.encode(torch.from_numpy(batch)) for batch in itertools.islice(batches, count)]
            yield row_group, {r: np.concatenate([part[r] for part in parts]) for r in parts[0]}


def _divisor(size: int, batch_size: int) -> int:
    """The largest divisor of a row group's `size` that is at most `batch_size`.

    >>> _divisor(256, 100)
    64
    """
    return next(n for n in range(max(1, min(batch_size, size)), 0, -1) if size % n == 0)


def _stretches(row_groups: list[int]) -> Iterator[list[int]]:
    """Runs of consecutive numbers.

    >>> list(_stretches([0, 1, 4, 5, 7]))
    [[0, 1], [4, 5], [7]]
    """
    for _, run in itertools.groupby(enumerate(row_groups), key=lambda pair: pair[1] - pair[0]):
        yield [row_group for _, row_group in run]
