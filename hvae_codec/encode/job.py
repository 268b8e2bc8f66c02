"""One row group as a task: stateless, idempotent, for any process that sees the model's run and the unfinished store.

EncodeJob        the same for all row groups, a few hundred bytes: where model and store are
RowGroupEncoder  what a process makes of that, once: model, and the mask, codec, steps and layout that the store names
RowGroupImages   the images of one, and nothing of the others
encode_row_group(encoder, images) ──> Seen, or a code that is too large for its array
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..data.seen import Seen
from ..data.sources import ImageSource
from ..engine.handshake import package_version
from ..engine.per_process import PerProcess
from ..engine.taking_part import taking_part
from ..model.recorded import GraphMode
from ..model.reference import ModelSource, model_here
from ..store.narrowing import CodeRangeError
from ..store.quantiser import check_clipped
from ..store.row_group_writer import RowGroupWriter
from ..store.unfinished_reference import UnfinishedReference
from ..writing.commit import write_row_group
from ..writing.here import check_here
from .batch_coder import BatchCoder
from .coder import LatentCoder
from .image_encoder import ImageEncoder


@dataclass(frozen=True, eq=False, kw_only=True)
class EncodeJob:
    """What tasks of one encode have in common."""

    model: ModelSource
    store: UnfinishedReference
    batch_size: int  # images through the model at once
    evaluate: bool  # see `ImageEncoder`, as for the next ones
    seed: int
    verify: bool
    checksums: bool
    device: str = "auto"  # where workers compute: cpu, cuda, or auto, a GPU where there is one
    graph: GraphMode = "auto"
    version: str = field(default_factory=package_version)  # of this package, where the job was made

    @property
    def encoder(self) -> PerProcess[RowGroupEncoder]:
        """What tasks have of it, which loads the model once in each process."""
        return PerProcess(partial(RowGroupEncoder.open, self))


@dataclass(frozen=True)
class RowGroupImages:
    """The images of one row group."""

    row_group: int
    source: ImageSource  # these alone, see `ImageSource.portion`

    def __str__(self) -> str:
        return f"row group {self.row_group}"


@dataclass(frozen=True)
class RowGroupEncoder:
    """What a process encodes the row groups of a job with."""

    job: EncodeJob
    writer: RowGroupWriter
    batch_coder: BatchCoder

    @classmethod
    def open(cls, job: EncodeJob) -> RowGroupEncoder:
        """Load the model; raises an error that names this machine if it cannot take part."""
        with taking_part():
            check_here(job.store, job.version)
            store, model = job.store.open(), model_here(job.model, job.device, job.graph)
            return cls(job, job.store.writer_of(store), BatchCoder(LatentCoder.of_store(store, model), job.batch_size))

    def encode(self, images: RowGroupImages) -> Seen:
        """Encode, write and commit a row group; what was seen of its images."""
        job, writer, source, number = self.job, self.writer, images.source, images.row_group
        measured: Any = {key: getattr(job, key) for key in ("evaluate", "seed", "verify", "checksums")}
        stored, per_image = ImageEncoder(self.batch_coder, source, **measured).encode_range(range(len(source)))
        rows = writer.rows(number)
        check_clipped(writer.layout.codec, stored, f"images {rows.start} to {rows.stop - 1}")
        write_row_group(writer, number, stored, per_image, source.names, read_back=job.verify)
        return source.seen


def encode_row_group(encoder: PerProcess[RowGroupEncoder], images: RowGroupImages) -> Seen | CodeRangeError:
    """Encode, write and commit a row group; what was seen of its images, or that an array has no room for a code.

    That is no error of the task: others that are under way must end before anything can be done.
    Raises `DataError` or `OSError` if its images are at fault; `EngineError`, `ModelError`, `StoreError` or
    `UsageError` if this process cannot take part, or the store cannot hold the latents.
    """
    try:
        return encoder.get().encode(images)
    except CodeRangeError as error:
        return error
