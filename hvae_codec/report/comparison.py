"""What differs between images and a store of them: sentences, and the same as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from ..encode.comparison import Comparison, lost_source_sentence
from .counts import count

SHOWN_NAMES = 5  # of each kind, at most


def comparison_data(found: Comparison) -> dict[str, Any]:
    """Return all names and counts as plain data for JSON; `changed` is null if the store has no checksums."""
    names = found.source.names
    return {
        "store": str(found.store.path),
        "differs": found.differs,
        "images": len(found.rows),
        "stored_images": len(found.store),
        "new": [names[i] for i in found.new.tolist()],
        "changed": [names[i] for i in found.changed.tolist()] if found.knows_bytes else None,
        "renamed": [[found.store.names[found.rows[i]], names[i]] for i in found.renamed.tolist()],
        "relabelled": [names[i] for i in found.relabelled.tolist()],
        "gone": [found.store.names[row] for row in found.gone.tolist()],
        "to_encode": {"images": len(found.encoded), "row_groups": found.encoded_row_groups},
        "to_keep": {"images": len(found.rows) - len(found.encoded), "row_groups": len(found.kept_row_groups)},
    }


def comparison_sentences(found: Comparison) -> Iterator[str]:
    """Say what differs, a line for each kind, and what it takes to make the store of these images."""
    store, data = found.store, found.source.container.path
    if not found.knows_bytes:
        yield (
            f"{store.path} is of format version {store.format_version}, which has no checksums: names alone are "
            "compared, so changed images are not found"
        )
    if not found.differs:
        same = "as they are now" if found.knows_bytes else "by their names"
        yield f"{store.path} has the {count(len(store), 'image')} of {data} {same}"
        return
    yield f"{store.path} has {count(len(store), 'image')}, and {data} has {len(found.rows):,}"
    names, stored = found.source.names, store.names
    kinds: dict[str, tuple[Sequence[int], Iterable[str]]] = {
        "new": (found.new.tolist(), (names[i] for i in found.new)),
        "changed": (found.changed.tolist(), (names[i] for i in found.changed)),
        "renamed": (found.renamed.tolist(), (f"{stored[found.rows[i]]} to {names[i]}" for i in found.renamed)),
        "of another class or split": (found.relabelled.tolist(), (names[i] for i in found.relabelled)),
        "gone": (found.gone.tolist(), (stored[row] for row in found.gone)),
    }
    for kind, (images, shown) in kinds.items():
        if images:
            yield f"  {len(images):,} {kind}: {_first(shown, len(images))}"
    if sentence := lost_source_sentence(found):
        yield sentence
    if part := _other_split(found):
        yield f"All images in the store are of the split {part}: --split {part} compares these alone"
    if parts := _unasked_splits(found):
        yield f"All images that are gone are of the split {parts}, and none of that was asked for: see --split"
    yield _work(found)


def _other_split(found: Comparison) -> str:
    """Return the split that all images in the store are of if new ones are of others; empty if that is not so."""
    stored = {*(found.store.splits or ())}
    part = stored.pop() if len(stored) == 1 else ""
    return part if part and any(found.source.split_names[i] != part for i in found.new.tolist()) else ""


def _unasked_splits(found: Comparison) -> str:
    """Name the splits of the gone images if the others are of other splits; empty if that is not so, or not known."""
    splits, asked = found.store.splits, {*found.source.split_names.distinct()}
    gone = {splits[row] for row in found.gone.tolist()} if splits is not None else set()
    return "" if "" in gone or gone & asked else " or ".join(sorted(gone))


def _work(found: Comparison) -> str:
    encoded, groups = len(found.encoded), count(len(found.row_groups), "row group")
    kept, whole = len(found.rows) - encoded, len(found.kept_row_groups)
    where = f", in {found.encoded_row_groups:,} of {groups}" if encoded else ""
    return f"To encode: {count(encoded, 'image')}{where}; to keep: {kept:,}, {whole:,} of {groups} as they are"


def _first(names: Iterable[str], total: int) -> str:
    more = f" and {total - SHOWN_NAMES:,} more" if total > SHOWN_NAMES else ""
    return ", ".join(islice(names, SHOWN_NAMES)) + more
