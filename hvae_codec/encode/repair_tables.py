"""Tables and array metadata of a damaged store, made anew and proven by its fingerprint before anything is replaced."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray

from ..errors import HvaeCodecError, StoreError
from ..images import ImageSource
from ..model.checkpoint import model_hash
from ..model.hvae import HVAE
from ..prune.kl_stats import KLStats
from ..prune.mask import LatentMask
from .coder import quantiser_steps
from .columns import stored_columns
from .embedded_model import ARRAY, model_weights
from .layout import StoreSpec, create_arrays, spec_fingerprint
from .places import Place, replace_file
from .subject import Subject
from .verify import VerifyReport, spec_of_tables


def mend_tables(
    path: Place, subject: Subject, report: VerifyReport, images: ImageSource, model: HVAE, stats: KLStats | None
) -> list[str]:
    """Replace what is damaged of the store at `path`, besides latents and digests; returns the files.

    Names and labels are those of `images` where the store's are damaged, columns those of the mask, steps those of the
    codec with `stats`, a model that the store carries is `model`. Raises `StoreError` where the store's fingerprint or
    the model's hash does not prove these; nothing is replaced then.
    """
    damaged = {damage.file.split("/")[0] for damage in report.damages if damage.row_group is None}
    wanted = sorted(damaged & {*subject.forms, *subject.per_image, ARRAY})
    if not wanted:
        return []
    spec = _proven_spec(subject, damaged, images, stats)
    if ARRAY in wanted:
        if model_hash(model) != spec.model["hash"]:
            raise StoreError(f"{path} carries another model than this one; give the run it was made with as --model")
        spec = replace(spec, weights=model_weights(model))
    with tempfile.TemporaryDirectory() as folder:
        create_arrays(zarr.open_group(folder, mode="w", zarr_format=3), spec)
        files = [file for name in wanted for file in _files(Path(folder), name)]
        for file in files:
            replace_file(path, file, (Path(folder) / file).read_bytes())
    return files


def _files(folder: Path, name: str) -> Iterator[str]:
    """All files of a table; of what is written with row groups, the metadata."""
    if name == "committed" or (name[0] == "z" and name[1:].isdecimal()):
        yield f"{name}/zarr.json"
        return
    yield from sorted(file.relative_to(folder).as_posix() for file in (folder / name).rglob("*") if file.is_file())


def _proven_spec(subject: Subject, damaged: set[str], images: ImageSource, stats: KLStats | None) -> StoreSpec:
    metadata, shown = subject.metadata, ", ".join(sorted(damaged & {*subject.forms, *subject.per_image, ARRAY}))
    try:
        mask = LatentMask.from_dict(metadata["mask"])
        spec = spec_of_tables(
            subject,
            names=_texts(subject, "name", damaged, images.names),
            labels=_texts(subject, "label", damaged, images.labels),
            columns=stored_columns(mask),
            steps=_steps(subject, damaged, mask, stats),
        )
    except (LookupError, TypeError, ValueError, HvaeCodecError) as error:
        raise StoreError(f"{shown} cannot be made anew ({error}); restore them from a copy") from None
    if spec_fingerprint(spec) != metadata.get("fingerprint"):
        raise StoreError(
            f"{shown} cannot be made anew: these are not the images, in their order, or not the ranking that the store "
            "was made with; give those, or restore the files from a copy"
        )
    return spec


def _texts(subject: Subject, name: str, damaged: set[str], others: Sequence[str]) -> Sequence[str]:
    return others if name in damaged else [str(text) for text in np.asarray(subject.arrays[name][:])]


def _steps(
    subject: Subject, damaged: set[str], mask: LatentMask, stats: KLStats | None
) -> dict[int, NDArray[np.float32]]:
    resolutions = subject.columns.resolutions
    whole = {r: np.asarray(subject.arrays[f"step{r}"][:]) for r in resolutions if f"step{r}" not in damaged}
    if len(whole) == len(resolutions):
        return whole
    if stats is None:
        raise StoreError("its steps need the ranking that the store was made with")
    return {**quantiser_steps(mask, subject.codec, stats), **whole}
