"""One row group as a task: stateless, idempotent, for any process that sees the model's run and the unfinished store.

EncodeJob        the same for all row groups, small: where model and store are, mask, codec, steps
RowGroupImages   the images of one, and nothing of the others
encode_row_group(job, images) ──> Written
"""

from __future__ import annotations

import functools
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.seen import Seen
from ..data.sources import ImageSource
from ..engine.handshake import package_version
from ..errors import EngineError, HvaeCodecError, UsageError
from ..model.hvae import HVAE
from ..model.recorded import GraphMode, Recording
from ..prune.mask import LatentMask
from ..store.quantiser import Codec, check_clipped
from ..store.row_group_writer import RowGroupWriter
from .batch_coder import BatchCoder
from .coder import LatentCoder
from .commit import write_row_group
from .image_encoder import ImageEncoder


class ModelSource(Protocol):
    """Where a process finds the model."""

    def load(self, device: str) -> HVAE:
        """Load it; raises `ModelError` or `StoreError` if there is none, or another one."""


@dataclass(frozen=True, eq=False, kw_only=True)
class EncodeJob:
    """What tasks of one encode have in common."""

    model: ModelSource
    mask: LatentMask
    codec: Codec
    steps: Mapping[int, NDArray[np.float32]]  # latent resolution to quantiser steps
    writer: RowGroupWriter
    batch_size: int  # images through the model at once
    evaluate: bool  # see `ImageEncoder`, as for the next ones
    seed: int
    verify: bool
    checksums: bool
    device: str = "auto"  # where workers compute: cpu, cuda, or auto, a GPU where there is one
    graph: GraphMode = "auto"
    version: str = field(default_factory=package_version)  # of this package, where the job was made
    key: str = field(default_factory=lambda: uuid.uuid4().hex)  # tells jobs apart

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EncodeJob) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@dataclass(frozen=True)
class RowGroupImages:
    """The images of one row group."""

    row_group: int
    source: ImageSource  # these alone, see `ImageSource.portion`

    def __str__(self) -> str:
        return f"row group {self.row_group}"


def encode_row_group(job: EncodeJob, images: RowGroupImages) -> Seen:
    """Encode, write and commit a row group; what was seen of its images.

    Raises `DataError` or `OSError` if its images are at fault; `EngineError`, `ModelError`, `StoreError` or
    `UsageError` if this process cannot take part, or the store cannot hold the latents.
    """
    source, number = images.source, images.row_group
    encoder = ImageEncoder(
        _batch_coder(job), source, evaluate=job.evaluate, seed=job.seed, verify=job.verify, checksums=job.checksums
    )
    stored, per_image = encoder.encode_range(range(len(source)))
    rows = job.writer.rows(number)
    check_clipped(job.codec, stored, f"images {rows.start} to {rows.stop - 1}")
    write_row_group(job.writer, number, stored, per_image, source.names, read_back=job.verify)
    return source.seen


@functools.lru_cache(maxsize=1)
def _batch_coder(job: EncodeJob) -> BatchCoder:
    """What this process encodes the row groups of a job with: made once, for all of them."""
    host = socket.gethostname()
    try:
        _check_here(job)
        model = job.model.load(_device(job.device))
        model.recording = Recording(job.graph)
        return BatchCoder(LatentCoder(model, job.mask, job.codec, job.steps), job.batch_size)
    except HvaeCodecError as error:
        raise type(error)(f"the worker on {host} cannot take part: {error}") from None
    except OSError as error:  # not of one row group's images: those of all would fail
        raise EngineError(f"the worker on {host} cannot take part: {error}") from None


def _check_here(job: EncodeJob) -> None:
    """Raise if this process cannot write row groups of a job."""
    if (version := package_version()) != job.version:
        raise EngineError(
            f"it has version {version} of hvae-codec, and {job.version} began the work; install the same in both"
        )
    if not job.writer.is_ours:
        raise EngineError(
            f"it does not see the unfinished store {job.writer.unfinished}; give a folder that all workers have in "
            "common, by the same absolute path, or a URL"
        )


def _device(wish: str) -> str:
    if wish == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wish != "cpu" and not torch.cuda.is_available():
        raise UsageError(f"torch finds no GPU for --device {wish}; give --device auto or cpu")
    return wish
