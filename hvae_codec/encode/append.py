"""More images into a finished store, under the same model, mask and codec.

    out.zarr          row groups 0 1 2 |3     the last one is partly filled
                                 | | | |
                             links     copied: its latents, then new images up to a whole row group
                                 | | | |
    out.zarr.partial  row groups 0 1 2  3  4  5      then the two swap names

Objects of a store never change, so the longer store shares them with the one that is read meanwhile; readers see the
old store or the new one, and a kill leaves the old one and, to go on from, the unfinished new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError, StoreError, UsageError
from ..image_arrays import ArrayReader
from ..images import ImageSource, as_source
from ..model.hvae import HVAE
from ..prune.own_batches import Progress
from .coder import LatentCoder
from .durable import sync, sync_tree
from .embedded_model import stored_weights
from .layout import ATTRIBUTE, StoreSpec, shard_key, spec_fingerprint
from .pipeline import EncodeOptions, Encoding, check_images
from .places import place_of
from .sketch import SKETCH
from .store import Store, open_store
from .workers import Worker, write_lock
from .writer import OUR_ENTRIES, StoreWriter, fingerprint_at, finish_swap, partial_path

EVALUATED = ("distortion", "rate")
MEASURED = (*EVALUATED, SKETCH)
"""Per-image arrays that can be added to."""


def append(
    model: HVAE,
    images: ImageSource | NDArray[np.uint8] | Tensor,
    path: Path | str,
    *,
    batch_size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> Store:
    """Add `images` (a source, or uint8 [N, C, H, W]) to the store at `path`, which stays readable; the longer store.

    Images of arrays have no names and are numbered on. Where the store has rate and distortion of its images, they
    are measured of these too, with noise of `seed`. Killed at any moment, the same call goes on. `progress` is called
    with the images done and the images to add.
    Raises `DataError` where these images, or others of their names, are in the store, or do not fit; `StoreError` where
    there is no store, it is damaged, of another model or being written, or where it has things that a user added.
    """
    path, source = _folder(path), as_source(images)
    check_images(model, source)
    with write_lock(path, Worker()):
        swapped, old = finish_swap(path), open_store(path)
        if swapped and _parts(old)[-1]["fingerprint"] == source.fingerprint:
            return old  # all that was left to do was to remove the shorter store
        coder = LatentCoder.of_store(old, model)
        measured = _measured_arrays(old)
        _check_additions(old)
        if len(old) % old.images_per_row_group:
            old.check(old.row_groups - 1)  # it gets a digest of its own, which must not vouch for damage
        options = EncodeOptions(
            batch_size,
            shard=old.images_per_row_group,
            evaluate=measured >= {*EVALUATED},
            seed=seed,
            verify=SKETCH in measured,
        )
        spec = _longer_spec(old, source, options)
        _check_partial(path, spec)
        writer = StoreWriter.create_or_resume(path, spec, overwrite=True)
        _take_over(old, writer)
        _write_images(Encoding(coder, source, spec, options, first=len(old)), old, writer, progress)
        writer.finish()
        return open_store(path)


def open_to_append(path: Path | str) -> Store:
    """The store at `path`, also after a kill at the one moment of `append` in which nothing has its name.

    Raises `UsageError` where it is not in a folder, and what `open_store` does.
    """
    folder = _folder(path)
    if not folder.exists():
        finish_swap(folder)
    return open_store(folder)


def _folder(path: Path | str) -> Path:
    place = place_of(path)
    if not isinstance(place, Path):
        raise UsageError(f"{path} is not on a local disk; copy the store, append to the copy, and put it back")
    if place.is_symlink():
        raise UsageError(f"{path} is a link; give the folder that it points to, {place.resolve()}")
    return place


# --- what the longer store is ----------------------------------------------------------------------------------------


def _longer_spec(old: Store, source: ImageSource, options: EncodeOptions) -> StoreSpec:
    return StoreSpec(
        names=[*old.names, *_new_names(old, source)],
        labels=[*old.labels, *source.labels],
        columns=old.columns,
        steps=old.steps,
        codec=old.codec,
        model=dict(old.metadata["model"]),
        mask=old.mask,
        image=dict(old.metadata["image"]),
        source=_joint_source(old, source),
        shard=old.images_per_row_group,
        chunk_bytes=_chunk_bytes(old),
        per_image=options.per_image,
        weights=stored_weights(old),
    )


def _new_names(old: Store, source: ImageSource) -> Sequence[str]:
    """Names of `source`, numbered on where it is an array; `DataError` where the store has it, or has these names."""
    if source.fingerprint in {part["fingerprint"] for part in _parts(old)}:
        raise DataError(f"these images are in {old.path} already; give others")
    if isinstance(source.reader, ArrayReader):
        return [f"{i:08d}" for i in range(len(old), len(old) + len(source))]
    both = set(old.names) & set(source.names)
    if both:
        example = next(name for name in source.names if name in both)
        raise DataError(f"{old.path} has {len(both):,} of these names already, such as {example}; rename the images")
    return source.names


def _parts(old: Store) -> list[dict[str, Any]]:
    """Fingerprint, bytes and images of each source that the store was made from, in order."""
    source = dict(old.metadata["source"])
    return source.get("parts") or [source | {"images": len(old)}]


def _joint_source(old: Store, source: ImageSource) -> dict[str, Any]:
    added = {"fingerprint": source.fingerprint, "bytes": source.source_bytes, "images": len(source)}
    parts = [*_parts(old), added]
    digest = hashlib.sha256("\n".join(str(part["fingerprint"]) for part in parts).encode()).hexdigest()
    return {"fingerprint": digest, "bytes": sum(int(part["bytes"]) for part in parts), "parts": parts}


def _chunk_bytes(old: Store) -> int:
    """The size the store was made with, or where that is not known one that gives chunks of as many images."""
    if isinstance(given := old.metadata.get("chunk_bytes"), int):
        return given
    sizes = [1]
    for resolution in old.resolutions:
        array = cast(zarr.Array, old.group[f"z{resolution}"])
        length = array.chunks[0]
        sizes += [length * int(np.prod(array.shape[1:])) * array.dtype.itemsize] if length > 1 else []
    return max(sizes)


def _measured_arrays(old: Store) -> set[str]:
    """The store's per-image arrays; `StoreError` where one of them cannot be added to."""
    spec_arrays = {"name", "label", *(f"z{resolution}" for resolution in old.resolutions)}
    found = {name for name, array in old.group.arrays() if _has_one_row_an_image(array)} - spec_arrays
    unknown = found - set(MEASURED) or (found if len(found & set(EVALUATED)) == 1 else set())
    if unknown:
        raise StoreError(
            f"{old.path} has the array {min(unknown)}, whose values for more images are not known; remove it from the "
            "store first"
        )
    return found


def _check_additions(old: Store) -> None:
    """Raise `StoreError` where the store has what a user added, which the longer one would not have."""
    document = json.loads((old.path / "zarr.json").read_bytes())
    found = [f"the attribute {name}" for name in document.get("attributes", {}) if name != ATTRIBUTE]
    found += ["consolidated metadata"] if document.get("consolidated_metadata") else []
    names = [entry.name for entry in sorted(cast(Path, old.path).iterdir()) if not entry.name.startswith(".")]
    found += [name for name in names if not OUR_ENTRIES.fullmatch(name)]
    found += [f"attributes of the array {name}" for name, array in sorted(old.group.arrays()) if dict(array.attrs)]
    if found:
        raise StoreError(
            f"{old.path} has {found[0]}, which encode did not write and append would lose; remove that from the store "
            "first, and add it to the longer store"
        )


def _has_one_row_an_image(array: zarr.Array) -> bool:
    return [*(getattr(array.metadata, "dimension_names", None) or ())][:1] == ["image"]


def _check_partial(path: Path, spec: StoreSpec) -> None:
    partial = partial_path(path)
    if fingerprint_at(partial) not in (None, spec_fingerprint(spec)):
        raise StoreError(f"{partial} is left of another append or encode; finish that with its command, or remove it")


# --- what it is made from --------------------------------------------------------------------------------------------


def _take_over(old: Store, writer: StoreWriter) -> None:
    """Commit all whole row groups of the old store, by links to their objects."""
    whole = [r for r in writer.pending() if r < len(old) // old.images_per_row_group]
    if not whole:
        return
    evaluated, shard = _evaluated(old, slice(None)), old.images_per_row_group
    for row_group in whole:
        rows = slice(row_group * shard, (row_group + 1) * shard)
        writer.write_per_image(row_group, {name: values[rows] for name, values in evaluated.items()})
    for resolution in old.resolutions:
        for row_group in whole:
            key = f"z{resolution}/{shard_key(row_group, old.columns.item(resolution))}"
            _link(writer.path / key, writer.partial / key)
        sync_tree(writer.partial / f"z{resolution}")
    for row_group in whole:
        _link(writer.path / f"committed/c/{row_group}", writer.partial / f"committed/c/{row_group}")
    sync(writer.partial / "committed" / "c")


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileExistsError:  # linked before a kill
        return
    except FileNotFoundError:
        raise StoreError(f"{source} is missing from the store; repair the store first") from None
    except OSError:  # no hard links here
        unfinished = target.with_name(target.name + ".partial")
        shutil.copyfile(source, unfinished)
        sync(unfinished)
        unfinished.replace(target)


def _write_images(encoding: Encoding, old: Store, writer: StoreWriter, progress: Progress | None) -> None:
    """The rest of the old store's last row group, then the row groups that are new throughout."""
    shard = encoding.spec.shard
    row_group, kept = divmod(len(old), shard)
    joined = min(shard - kept, len(encoding.source)) if kept else 0
    if joined and row_group in writer.pending():
        stored, measured = encoding.encode(encoding.source.batches(encoding.batch_size, stop=joined), range(joined))
        rows = slice(len(old) - kept, len(old))
        writer.write(row_group, _joined(old.stored(rows), stored), _joined(_evaluated(old, rows), measured))
    encoding.write(writer, progress and (lambda done, total: progress(done + joined, total + joined)))


def _joined(old: Mapping[Any, NDArray], new: Mapping[Any, NDArray]) -> dict[Any, NDArray]:
    return {key: np.concatenate([old[key], numbers]) for key, numbers in new.items()}


def _evaluated(old: Store, rows: slice) -> dict[str, NDArray]:
    """What was measured of the old store's images, where it has such arrays."""
    names = [name for name in MEASURED if name in old.group]
    return {name: old.per_image(name)[rows] for name in names}
