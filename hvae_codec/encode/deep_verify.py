"""Whether the images of a store can be decoded, and to what they decoded to when they were encoded."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import LATEST_RUN
from ..errors import StoreError
from ..model.batch_size import default_batch_size
from ..model.checkpoint import load_model
from ..model.decoder import Decoder
from ..model.hvae import HVAE
from ..progress import Progress
from ..storage.location import LocationLike, location_of
from ..store.damage import Damage
from ..store.group_file import read_metadata
from ..store.reader import Store
from ..verification import verify as plain
from ..verification.verify import VerifyReport
from .batch_coder import BatchDecoder
from .encoded_store import EncodedStore, find_run, open_store
from .sketch import SKETCH, rms_difference, sketch

ROW_GROUP_LIMIT, IMAGE_LIMIT = 2.0, 6.0
"""Levels of 255, root mean square, from which a row group or an image decodes to something else. Rounding a tenth of
the pixels to a neighbouring level is 0.3; other images are tens of levels away."""


def verify_deep(
    store_path: LocationLike,
    model: HVAE | Decoder | None = None,
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
    run: Path | None = None,
) -> VerifyReport:
    """`verify`, which also decodes every image whose latents are whole, by `model`, or by what the store carries.

    The model is that of `run`, if it is given, or of the run that the store names if it carries none that is whole.

    Images are compared with their sketches if the store has sketches. Raises like `verify`, and `StoreError` if the
    model is not here or another one, or if the one that the store carries was replaced.
    """
    sketches = fault = None
    try:
        store = open_store(store_path)
        model, fault = (model, None) if model else _load_decoder(store, device, run)
        coder = store.decoder(model)
        decoder = BatchDecoder(coder, default_batch_size(coder.model))
        with contextlib.suppress(StoreError):  # if there are none, or not of all images
            sketches = store.per_image(SKETCH)
    except StoreError:
        report = plain.verify(store_path, progress=progress)
        if report.ok:  # so it is the model
            raise
        return replace(report, notes=[*report.notes, "images were not decoded: metadata or tables are damaged"])
    check_images = functools.partial(_damages, store, decoder, sketches)
    report = plain.verify(store_path, check_images=check_images, progress=progress)
    if fault and report.ok:  # the file is as it was written, by somebody else
        raise fault
    if sketches is not None:
        return report
    note = "images were decoded, but not compared: the store has no sketches, see encode --verify"
    return replace(report, notes=[*report.notes, note])


def load_store_model(where: LocationLike, device: str | torch.device = "cpu", run: Path | None = None) -> HVAE:
    """The model of a store, which may be damaged: that of `run`, or the one that it carries, or of the run it names.

    Raises `StoreError` if that run is not here, `ModelError` if it is damaged.
    """
    location = location_of(where)
    try:
        return open_store(location).load_model(device, run)
    except StoreError:
        model = read_metadata(location).model
        return load_model(run or find_run(location, model.run or LATEST_RUN), device, kept=model.hash)


def _load_decoder(
    store: EncodedStore, device: str | torch.device, run: Path | None
) -> tuple[HVAE | Decoder, StoreError | None]:
    """What decodes `store`; if what it carries is damaged, the model of the run that it names, and the damage."""
    try:
        return store.load_decoder(device, run), None
    except StoreError as error:
        return load_store_model(store.path, device, run), error


def _damages(
    store: Store, decoder: BatchDecoder, sketches: NDArray[np.float32] | None, rows: range
) -> Iterator[Damage]:
    """What is wrong with the images `rows`, of one row group whose latents are whole; `sketches` are of all images."""
    row_group = store.row_groups.of(rows.start)
    try:
        pixels = decoder.decode_checked(store.stored(slice(rows.start, rows.stop)))
    except StoreError as error:
        yield Damage(f"row group {row_group}", f"cannot be decoded: {error}", rows)
        return
    if sketches is None:
        return
    difference = rms_difference(sketch(pixels), sketches[rows.start : rows.stop], store.image_dims)
    overall = float(np.sqrt(np.square(difference).mean()))
    far = [rows[i] for i in np.flatnonzero(difference > IMAGE_LIMIT)]
    if overall > ROW_GROUP_LIMIT or far:
        problem = f"tells of other pixels than are decoded here, by about {overall:.3g} levels (root mean square)"
        yield Damage(f"{SKETCH}/c/{row_group}", problem, far or rows)
