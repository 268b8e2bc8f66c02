"""What a store with more images is: the old one's specification with more names, and what would be lost on the way.

old store + images ── extended_spec ──> StoreSpec      the names and labels of both, all else as it was

The appended store gets a fingerprint of its own, which vouches for the old store's tables too: they are compared with
the old one's first.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from ..data.content import content_checksums
from ..data.sources import ImageSource
from ..errors import DataError, StoreError, UsageError
from ..store.metadata import SourcePart, SourceRecord
from ..store.reader import Store
from ..store.schema import RECORDS, dimension_names
from ..store.spec import StoreSpec
from ..texts.index import TextIndex
from ..texts.numbered import NumberedTexts
from ..texts.packed import PackedTexts
from ..texts.sequence import JoinedTexts, Texts
from ..writing.additions import added_to, all_arrays
from ..writing.proven_spec import proven_spec
from .comparison import compare
from .image_encoder import EVALUATED
from .sketch import SKETCH
from .stored_preprocessing import preprocessing_of

_MOST_DIGITS = 17  # of an image's number, which is int64


def extended_spec(
    old: Store, source: ImageSource, per_image: tuple[str, ...], prefix: str = "", *, check: bool = False
) -> StoreSpec:
    """The specification of `old`, and its version of the format, with the images of `source` after its own.

    Names of these begin with `prefix`. Raises `DataError` if the store has these images, or others of their names, and
    says whether they have changed since (for `check` see `content_checksums`); `StoreError` as `spec_to_go_on_with`;
    `UsageError` if `prefix` leads out of a folder.
    """
    spec = spec_to_go_on_with(old, per_image)
    return replace(
        spec,
        names=JoinedTexts([old.names, _new_names(old, source, prefix, check)]),
        labels=JoinedTexts([old.labels, source.labels]),
        splits=None if old.splits is None else JoinedTexts([old.splits, source.split_names]),
        file_bytes=None if spec.file_bytes is None else np.concatenate([spec.file_bytes, source.file_bytes]),
        source=_joint_source(old, source),
    )


def spec_to_go_on_with(old: Store, per_image: tuple[str, ...]) -> StoreSpec:
    """The specification of `old` for a store of other images that takes latents of it over.

    Raises what `proven_spec` does.
    """
    return replace(proven_spec(old), per_image=per_image)


def _new_names(old: Store, source: ImageSource, prefix: str, check: bool) -> Texts:
    """Names of `source` after `prefix`; without one, those of an array are numbered on.

    Raises `DataError` if the store has these images, or has others of these names.
    """
    _check_prefix(prefix)
    parts = [part.fingerprint for part in old.metadata.source.parts_of(len(old))]
    if source.fingerprint in parts:
        edited = _changed_in(old, parts.index(source.fingerprint), source, check)
        raise DataError(f"these images are in {old.path} already{edited}; give others")
    if source.container.numbered_names and not prefix:
        return _numbers_after(old.names, len(source))
    names = _prefixed(source.names, prefix)
    index = TextIndex(old.names)
    found = np.concatenate([index.find(block) >= 0 for block in names.blocks()])
    if found.any():
        example = f"{names[int(found.argmax())]}{'' if prefix else _changed(old, source, check)}"
        problem = f"{old.path} has {found.sum():,} of these names already, such as {example}"
        advice = f"--prefix {_unused_prefix(old, source)}, which the new names get in the store"
        raise DataError(f"{problem}; tell them apart with {advice}")
    return names


def _prefixed(names: Texts, prefix: str) -> Texts:
    return PackedTexts.of_blocks([prefix + name for name in block] for block in names.blocks()) if prefix else names


def _check_prefix(prefix: str) -> None:
    """Raise `UsageError` if names that begin with `prefix` are no names in a folder, which `decode` makes of them."""
    parts = prefix.replace("\\", "/").split("/")
    if prefix.startswith(("/", "\\")) or "\0" in prefix or ".." in parts or parts[0].endswith(":"):
        raise UsageError(f"--prefix is {prefix!r}, which leads out of a folder; give the beginning of a name, as new/")


def _unused_prefix(old: Store, source: ImageSource) -> str:
    """A prefix that no name in the store begins with, of the container's name if that can be one."""
    stem = re.sub(r"[^\w.-]+", "-", PurePath(source.container.path.name).stem).strip("-.") or "new"
    candidates = (f"{stem}{number}/" for number in ("", *range(2, len(old) + 3)))
    return next(prefix for prefix in candidates if not any(name.startswith(prefix) for name in old.names))


def _numbers_after(names: Texts, count: int) -> Texts:
    """Number `count` images on: by their place in the store, or after the highest number if such a name is taken.

    >>> _numbers_after(NumberedTexts("", 2), 2), _numbers_after(NumberedTexts("", 2, first=3), 2)
    (('00000002', '00000003'), ('00000005', '00000006'))
    """
    by_place = range(len(names), len(names) + count)
    is_taken = any(number in by_place for number in _numbers_in(names))
    return NumberedTexts("", count, first=1 + max(_numbers_in(names)) if is_taken else by_place.start)


def _numbers_in(names: Texts) -> Iterator[int]:
    """Numbers among the names; more digits than an image's number has make it another name."""
    return (int(name) for name in names if len(name) <= _MOST_DIGITS and name.isdecimal())


def _changed_in(old: Store, part: int, source: ImageSource, check: bool) -> str:
    """Say which images were changed since they became that part of the store; empty if none were, or are known."""
    parts = old.metadata.source.parts_of(len(old))
    start = sum(before.images for before in parts[:part])
    if old.checksums is None:
        return ""
    stored = old.checksums[start : start + len(source)]
    changed = np.flatnonzero(content_checksums(source, check=check) != stored)
    return _edited(source, changed, has_others=len(parts) > 1)


def _changed(old: Store, source: ImageSource, check: bool) -> str:
    """Say which images have other bytes than those of their names in the store; empty if none have."""
    return _edited(source, compare(source, old, check=check).changed)


def _edited(source: ImageSource, changed: NDArray[np.int64], has_others: bool = False) -> str:
    """Name the images `changed`, and what follows them; of a store that has other images, sync would remove these."""
    if not len(changed):
        return ""
    others = f" and {len(changed) - 1:,} others" if len(changed) > 1 else ""
    advice = "" if has_others else ": sync encodes what has changed"
    return f" ({source.names[changed[0]]}{others} with other bytes{advice})"


def _joint_source(old: Store, source: ImageSource) -> SourceRecord:
    added = SourcePart(fingerprint=source.fingerprint, bytes=source.source_bytes, images=len(source))
    parts = (*old.metadata.source.parts_of(len(old)), added)
    digest = hashlib.sha256("\n".join(part.fingerprint for part in parts).encode()).hexdigest()
    preprocessing = preprocessing_of(old.metadata, old.path).joined(source.preprocessing).to_dict()
    return SourceRecord(
        fingerprint=digest, bytes=sum(part.bytes for part in parts), parts=parts, preprocessing=preprocessing
    )


def measured_arrays(old: Store) -> set[str]:
    """The store's per-image arrays but a user's own; `StoreError` if one of them cannot be added to."""
    records = RECORDS if old.metadata.has_records else ()
    spec_arrays = {"name", "label", *records, *(f"z{resolution}" for resolution in old.resolutions)}
    found = {name for name, array in all_arrays(old).items() if dimension_names(array)[:1] == ("image",)} - spec_arrays
    found &= {*(found if old.metadata.arrays is None else old.metadata.arrays)}
    unknown = found - {*EVALUATED, SKETCH} or (found if len(found & {*EVALUATED}) == 1 else set())
    if unknown:
        raise StoreError(
            f"{old.path} has the array {min(unknown)}, whose values for more images are not known; remove it from the "
            "store first"
        )
    return found


def check_additions(old: Store) -> None:
    """Raise `StoreError` if the store has what a user added, which the appended one would not have."""
    found = added_to(old)
    if found:
        raise StoreError(
            f"{old.path} has {found[0]}, which encode did not write and append would lose; remove that from the store "
            "first, and add it to the appended store"
        )
