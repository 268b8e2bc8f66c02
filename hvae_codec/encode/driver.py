"""Has the row groups that an encode or append lacks encoded by workers: what they are told, and what is noted of them.

Each gets the images of its row group; see `writing/driver.py` for how they are sent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ..data.seen import Seen
from ..engine.engine import Engine
from ..engine.tally import Tally
from ..model.reference import ModelSource
from ..progress import Progress
from ..store.unfinished_reference import UnfinishedReference
from ..writing.driver import Driver, RowGroupTasks
from .job import EncodeJob, RowGroupImages, encode_row_group
from .missing import MissingRowGroups


@dataclass(frozen=True)
class Workers:
    """Who encodes row groups."""

    engine: Engine
    device: str = "auto"  # where each computes: cpu, cuda, or auto, a GPU if it has one
    tally: Tally = field(default_factory=Tally)  # counts row groups, workers and retries


def job_of(missing: MissingRowGroups, model: ModelSource, device: str) -> EncodeJob:
    """Make what the tasks have in common that encode as the given encoder does."""
    encoder = missing.encoder
    return EncodeJob(
        model=model,
        store=UnfinishedReference.of(missing.writer.row_group_writer),
        batch_size=encoder.batch_size,
        evaluate=encoder.evaluate,
        seed=encoder.seed,
        verify=encoder.verify,
        checksums=encoder.checksums,
        device=device,
        graph=encoder.coder.model.recording.wanted,
    )


def driver_of(
    missing: MissingRowGroups, model: ModelSource, workers: Workers, progress: Progress | None = None
) -> Driver[RowGroupImages, Seen]:
    """Make what has the row groups of one encode or append written by workers."""
    source = missing.encoder.source

    def images(row_group: int) -> RowGroupImages:
        return RowGroupImages(row_group, source.portion(np.array(missing.images(row_group))))

    def note(row_group: int, seen: Seen) -> None:
        source.note(np.array(missing.images(row_group)), seen)

    work = partial(encode_row_group, job_of(missing, model, workers.device).encoder)
    return Driver(missing, RowGroupTasks(work, images, note), workers.engine, workers.tally, progress)
