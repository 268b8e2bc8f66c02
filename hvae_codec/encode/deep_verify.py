"""Whether the images of a store can be decoded, and to what they decoded to when they were encoded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..config import LATEST_RUN
from ..engine.engine import Engine, Here
from ..engine.given import Executors, given_engine
from ..engine.per_process import PerProcess
from ..engine.taking_part import taking_part
from ..engine.tally import Tally
from ..errors import StoreError
from ..model.batch_size import default_batch_size
from ..model.checkpoint import load_model
from ..model.decoder import Decoder
from ..model.device_choice import choose_device
from ..model.hvae import HVAE
from ..progress import Progress
from ..storage.location import LocationLike, location_of
from ..store.damage import Damage
from ..store.group_file import read_metadata
from ..store.reader import Store
from ..verification import verify as plain
from ..verification.row_group_check import CheckImages
from ..verification.same_store import StoreReference
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
    engine: Engine | None = None,
    executor: Executors | None = None,
    tally: Tally | None = None,
) -> VerifyReport:
    """`verify`, which also decodes every image whose latents are whole, by `model`, or by what the store carries.

    The model is that of `run`, if it is given, or of the run that the store names if it carries none that is whole.
    Row groups are read and decoded by `engine` or on an `executor`: by this process if neither is given. Processes
    elsewhere load the model themselves, from the store or its run, on `device`: cpu, cuda, or auto, a GPU if they have
    one.

    Images are compared with their sketches if the store has sketches. Raises like `verify`, and `StoreError` if the
    model is not here or another one, or if the one that the store carries was replaced.
    """
    with given_engine(engine, executor) as used:
        run_plain = functools.partial(plain.verify, store_path, progress=progress, engine=used, tally=tally)
        return _verify_deep(store_path, run_plain, model, device, run, is_here=isinstance(used, Here))


def _verify_deep(
    store_path: LocationLike,
    run_plain: Callable[..., VerifyReport],
    model: HVAE | Decoder | None,
    device: str | torch.device,
    run: Path | None,
    *,
    is_here: bool,
) -> VerifyReport:
    fault = None
    try:
        store = open_store(store_path)
        model, fault = (model, None) if model else _load_decoder(store, device if is_here else "cpu", run)
        decoder = _batch_decoder(store, model)
        has_sketches = _has_sketches(store)
    except StoreError:
        report = run_plain()
        if report.ok:  # so it is the model
            raise
        return replace(report, notes=[*report.notes, "images were not decoded: metadata or tables are damaged"])
    elsewhere = functools.partial(_check_elsewhere, StoreReference.of(store), run_of(model), str(device), has_sketches)
    check_images = PerProcess[CheckImages](
        elsewhere,
        lambda: functools.partial(_damages, store, decoder, has_sketches),
    )
    report = run_plain(check_images=check_images)
    if fault and report.ok:  # the file is as it was written, by somebody else
        raise fault
    if has_sketches:
        return report
    note = "images were decoded, but not compared: the store has no sketches, see encode --verify"
    return replace(report, notes=[*report.notes, note])


def _has_sketches(store: Store) -> bool:
    """Whether there are sketches, of all images."""
    try:
        store.per_image(SKETCH)
    except StoreError:
        return False
    return True


def _batch_decoder(store: EncodedStore, model: HVAE | Decoder) -> BatchDecoder:
    coder = store.decoder(model)
    return BatchDecoder(coder, default_batch_size(coder.model))


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


def run_of(model: HVAE | Decoder) -> Path | None:
    """The run that other processes load the model from; None if it is the one that the store carries."""
    run = getattr(model, "run", None)
    return None if run is None else Path(run).absolute()


def _check_elsewhere(reference: StoreReference, run: Path | None, device: str, has_sketches: bool) -> CheckImages:
    store = reference.open(open_store)
    with taking_part():
        model, _ = _load_decoder(store, choose_device(device), run)
        return functools.partial(_damages, store, _batch_decoder(store, model), has_sketches)


def _damages(store: Store, decoder: BatchDecoder, has_sketches: bool, rows: range) -> Iterator[Damage]:
    """What is wrong with the images `rows`, of one row group whose latents are whole."""
    row_group = store.row_groups.of(rows.start)
    try:
        pixels = decoder.decode_checked(store.stored(slice(rows.start, rows.stop)))
    except StoreError as error:
        yield Damage(f"row group {row_group}", f"cannot be decoded: {error}", rows)
        return
    if not has_sketches:
        return
    sketches = store.arrays.read(SKETCH, slice(rows.start, rows.stop))
    difference = rms_difference(sketch(pixels), sketches, store.image_dims)
    overall = float(np.sqrt(np.square(difference).mean()))
    far = [rows[i] for i in np.flatnonzero(difference > IMAGE_LIMIT)]
    if overall > ROW_GROUP_LIMIT or far:
        problem = f"tells of other pixels than are decoded here, by about {overall:.3g} levels (root mean square)"
        yield Damage(f"{SKETCH}/c/{row_group}", problem, far or rows)
