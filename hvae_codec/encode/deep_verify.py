"""Whether the images of a store can be decoded, and to what they decoded to when they were encoded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import LATEST_RUN
from ..errors import StoreError
from ..model.checkpoint import load_model
from ..model.hvae import HVAE
from ..progress import Progress
from ..storage.location import LocationLike, location_of
from ..store import verify as plain
from ..store.damage import Damage
from ..store.group_file import read_metadata
from ..store.reader import Store, Stored
from ..store.sketch import SKETCH, rms_difference, sketch
from ..store.verify import VerifyReport
from .coder import LatentCoder
from .encoded_store import find_run, open_store

ROW_GROUP_LIMIT, IMAGE_LIMIT = 2.0, 6.0
"""Levels of 255, root mean square, from which a row group or an image decodes to something else. Rounding a tenth of
the pixels to a neighbouring level is 0.3; other images are tens of levels away."""


def verify_deep(store_path: LocationLike, model: HVAE | None = None, progress: Progress | None = None) -> VerifyReport:
    """`verify`, which also decodes every image whose latents are whole, by `model` or the one that the store names.

    Images are compared with their sketches if the store has sketches. Raises like `verify`, and `StoreError` if the
    model is not here or another one.
    """
    try:
        verifier = DeepVerifier.of(Store.open(store_path), model or load_store_model(store_path))
    except StoreError as error:
        report = plain.verify(store_path, progress=progress)
        if report.ok:  # so it is the model
            raise error from None
        return replace(report, notes=[*report.notes, "images were not decoded: metadata or tables are damaged"])
    report = plain.verify(store_path, check_images=verifier.damages, progress=progress)
    if verifier.sketches is not None:
        return report
    note = "images were decoded, but not compared: the store has no sketches, see encode --verify"
    return replace(report, notes=[*report.notes, note])


def load_store_model(where: LocationLike, device: str | torch.device = "cpu") -> HVAE:
    """The model of a store, which may be damaged: the one that it carries, else that of the run it names.

    Raises `StoreError` if that run is not here, `ModelError` if it is damaged.
    """
    location = location_of(where)
    try:
        return open_store(location).load_model(device)
    except StoreError:
        return load_model(find_run(location, read_metadata(location).model.run or LATEST_RUN), device)


def decode_checked(coder: LatentCoder, stored: Stored, batch_size: int = 64) -> NDArray[np.uint8]:
    """Decoded images, uint8 [B, C, H, W]; `StoreError` if a pixel is not finite."""
    firsts = range(0, len(next(iter(stored.values()))), batch_size)
    batches = ({r: numbers[first : first + batch_size] for r, numbers in stored.items()} for first in firsts)
    return np.concatenate([decode_batch_checked(coder, batch) for batch in batches])


def decode_batch_checked(coder: LatentCoder, stored: Stored) -> NDArray[np.uint8]:
    """The same of few images, at once."""
    images = coder.decode(stored)
    if not torch.isfinite(images).all():
        raise StoreError("pixels are not finite; the model or its latents are damaged")
    return coder.model.likelihood.to_pixels(images).cpu().numpy()


@dataclass(frozen=True, eq=False)
class DeepVerifier:
    """Decodes row groups and compares them with their sketches, if the store has these."""

    store: Store
    coder: LatentCoder
    sketches: NDArray[np.float32] | None
    """Of the images as they decoded when they were encoded, [images]; None where the store has none, or not all."""

    @classmethod
    def of(cls, store: Store, model: HVAE) -> DeepVerifier:
        """Raises `StoreError` if `model` is not the one that encoded the images."""
        try:
            sketches = store.per_image(SKETCH)
        except StoreError:
            sketches = None
        return cls(store, LatentCoder.of_store(store, model), sketches)

    def damages(self, rows: range) -> Iterator[Damage]:
        """What is wrong with the decoded images `rows`, of one row group, whose latents are whole."""
        row_group = self.store.row_groups.of(rows.start)
        file = f"{SKETCH}/c/{row_group}"
        try:
            pixels = decode_checked(self.coder, self.store.stored(slice(rows.start, rows.stop)))
        except StoreError as error:
            yield Damage(f"row group {row_group}", f"cannot be decoded: {error}", rows)
            return
        if self.sketches is None:
            return
        known = self.sketches[rows.start : rows.stop]
        difference = rms_difference(sketch(pixels), known, self.store.image_dims)
        overall = float(np.sqrt(np.square(difference).mean()))
        far = [rows[i] for i in np.flatnonzero(difference > IMAGE_LIMIT)]
        if overall > ROW_GROUP_LIMIT or far:
            problem = f"tells of other pixels than are decoded here, by about {overall:.3g} levels (root mean square)"
            yield Damage(file, problem, far or rows)
