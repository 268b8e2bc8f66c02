"""What a look at a store found, for the terminal and for scripts."""

from __future__ import annotations

from typing import Any

from ..analysis.store_samples import Extremes
from ..store.reader import Store
from .counts import count
from .look import Look
from .look_page import same_sentence


def look_sentences(store: Store, found: Look) -> list[str]:
    """Say what the page shows, and how large it is."""
    known = [each.name for each in found.extremes]
    missing = "The store has neither distortion nor rate of its images; encode --evaluate all stores both."
    sentences = [f"The store has {' and '.join(known)} of its images." if known else missing]
    if found.neighbours is not None:
        compared = len(found.neighbours.images)
        sentences.append(f"{same_sentence(found.neighbours)} ({compared:,} were compared).")
    if not found.steps:
        sentences.append("There is no slider through the latent groups: the decoder alone is here; give --model.")
    size = f"{found.page_bytes / 1e6:.1f} MB"
    return [*sentences, f"{found.page}: {count(len(found.images), 'image')} of {len(store):,}, {size}"]


def look_data(store: Store, found: Look) -> dict[str, Any]:
    """Give what was found as plain data."""
    return {
        "page": str(found.page),
        "bytes": found.page_bytes,
        "images": len(store),
        "images_shown": len(found.images),
        "images_with_groups": sum(image.strip is not None for image in found.images.values()),
        "figures": {each.name: _extremes_data(store, each) for each in found.extremes},
        "images_compared": 0 if found.neighbours is None else len(found.neighbours.images),
        "images_with_the_latents_of_another": 0 if found.neighbours is None else found.neighbours.same,
        "pairs": [
            {
                "distance": pair.distance,
                "images": [pair.first, pair.second],
                "names": [store.names[pair.first], store.names[pair.second]],
            }
            for pair in found.pairs
        ],
    }


def _extremes_data(store: Store, found: Extremes) -> dict[str, Any]:
    def described(numbers: tuple[int, ...]) -> list[dict[str, Any]]:
        return [{"image": each, "name": store.names[each], "value": found.values[each]} for each in numbers]

    return {
        "images": found.known,
        "median": found.median,
        "highest": described(found.highest),
        "lowest": described(found.lowest),
    }
