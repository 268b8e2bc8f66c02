"""Events for TensorBoard. Training goes on if they cannot be written, so nothing is left to the library's thread."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ..data.sources import ImageSource
from ..model.hvae import HVAE, Elbo
from .metrics import SCALARS, StepMetrics

EVENTS_FOLDER = "tensorboard"
EVENT_IMAGES = 8  # images per row in TensorBoard, and in all


class TensorBoardLogger:
    """Logs the events of a run that continues from `step`; TensorBoard drops what an earlier try wrote after it.

    Events are scalars, KL per latent group, reconstructions beside originals, and prior samples. Once one cannot be
    written, as on a full disk, `on_warning` is called with a sentence, and there are no more.
    """

    def __init__(self, run: Path, step: int, on_warning: Callable[[str], None]) -> None:
        # Here, because these imports take as long as torch's.
        from tensorboard.compat.proto import event_pb2
        from torch.utils.tensorboard import summary

        self._event, self._summary, self._on_warning = event_pb2, summary, on_warning
        self._file = _EventFile(run / EVENTS_FOLDER)
        begin = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step + 1, {"file_version": "brain.Event:2"}, {"session_log": begin})

    def close(self) -> None:
        """Close the file, whose events are all written."""
        self._file.close()

    def add_step(self, m: StepMetrics) -> None:
        """Log the scalars of a step, and the KL of each group."""
        scalars = {f"train/{name}": getattr(m, name) for name in (*SCALARS, "active_groups")}
        scalars["train/skipped"] = m.skipped_so_far
        self._add_scalars(m.step, scalars | {f"kl/group_{i:02d}": rate for i, rate in enumerate(m.group_rates)})

    def add_validation(self, step: int, elbo: Elbo, model: HVAE, held_out: ImageSource, seed: int) -> None:
        """Log held-out bits/dim, a row of originals above their reconstructions, and samples from the prior."""
        names = ("nelbo", "rate", "distortion")
        self._add_scalars(step, {f"validation/{name}": getattr(elbo, name).item() for name in names})
        if self._file.lost:
            return
        chosen = held_out.evenly(EVENT_IMAGES)
        originals = torch.from_numpy(chosen.read(range(len(chosen))))
        generator = torch.Generator(model.device).manual_seed(seed)
        images = {
            "originals_and_reconstructions": torch.cat([originals, model.reconstruct(originals).cpu()]),
            "samples": model.sample(EVENT_IMAGES, generator=generator).cpu(),
        }
        self._write(step, *({"summary": self._summary.image(*image, dataformats="NCHW")} for image in images.items()))

    def _add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._write(step, *({"summary": self._summary.scalar(*scalar)} for scalar in values.items()))

    def _write(self, step: int, *events: Mapping[str, Any]) -> None:
        """Write events of `step`, each given by its one field."""
        if self._file.lost:
            return
        try:
            for event in events:
                self._file.add(self._event.Event(wall_time=time.time(), step=step, **event).SerializeToString())
            self._file.flush()
        except OSError as error:
            self._file.close()
            self._on_warning(f"there are no more events for TensorBoard: {self._file.path} cannot be written ({error})")


class _EventFile:
    """A new file of records in a folder, made with the first one; `lost` once it is closed."""

    def __init__(self, folder: Path) -> None:
        # TensorBoard reads the files of a run in the order of the times in their names.
        names = (f"{int(time.time()):010d}", socket.gethostname(), str(os.getpid()), uuid.uuid4().hex[:8])
        self.path = folder / ".".join(("events.out.tfevents", *names))
        self.lost = False
        self._records: Any = None

    def add(self, record: bytes) -> None:
        """Write a record; `OSError` if that fails."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        if self._records is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._records = RecordWriter(open(self.path, "wb"))  # noqa: SIM115
        self._records.write(record)

    def flush(self) -> None:
        """Hand all records to the system; `OSError` if that fails, or somebody has removed the file."""
        self._records.flush()
        self.path.stat()

    def close(self) -> None:
        """Write no more."""
        self.lost = True
        if self._records is not None:
            with suppress(OSError):  # what `flush` could not write either
                self._records.close()
