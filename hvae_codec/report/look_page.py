"""What the page of a look shows, as text: collected for its template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..analysis.near_duplicates import Neighbours, Pair
from ..analysis.store_samples import SAMPLED, Extremes, LabelSample
from ..store.reader import Store
from .codec_text import store_codec_text
from .counts import count
from .look_images import ShownImage, decibels
from .look_pictures import EXACT_SIZE, THUMBNAIL_SIZE, frame_size, is_exact, thumbnail_size
from .look_steps import GroupStep
from .templates import template

GENERATOR = "hvae-codec look"
"""What the page says wrote it."""

_LARGEST_FRAME = 320  # CSS pixels
_MEANING = {
    "distortion": ("Distortion", "-log2 p(image | z)", "worst", "best"),
    "rate": ("Rate", "KL of all latent groups", "most costly", "cheapest"),
}


def render_look(
    store: Store,
    samples: Sequence[LabelSample],
    extremes: Sequence[Extremes],
    neighbours: Neighbours | None,
    pairs: Sequence[Pair],
    steps: Sequence[GroupStep],
    images: Mapping[int, ShownImage],
    seed: int,
) -> str:
    """Make the page as text. `images` are all that the other arguments name; without `steps` there is no slider."""
    words, size = _Words(store), store.image_size
    return template("look.html.j2").render(
        generator=GENERATOR,
        name=store.path.name,
        about=_about(store),
        samples=samples,
        sheet=_sheet_sentence(store, samples, seed),
        extremes=[_section(found, len(store)) for found in extremes],
        pairs=[_pair(pair, words) for pair in pairs],
        found=[] if neighbours is None else _neighbour_sentences(store, neighbours, seed),
        steps=_rows(steps, images),
        stepped=sum(image.strip is not None for image in images.values()),
        images=images,
        words={number: words.of(number) for number in images},
        exact=is_exact(size),
        tile_size=_shown_size(thumbnail_size(size), EXACT_SIZE if is_exact(size) else THUMBNAIL_SIZE),
        frame=_shown_size(frame_size(size), _LARGEST_FRAME),
        data=_data(store, extremes, steps, images, words),
    )


class _Words:
    """What is said of an image."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def of(self, number: int) -> dict[str, str]:
        """Say name, label and split; what is not known is empty."""
        splits = self._store.splits
        return {
            "name": self._store.names[number],
            "label": self._store.labels[number],
            "split": "" if splits is None else splits[number],
        }


def _about(store: Store) -> str:
    size, channels = store.image_size, store.metadata.image.channels
    return (
        f"{count(len(store), 'image')} of {size} × {size} pixels and {count(channels, 'channel')}; "
        f"{store.kept_dims:,} latent dimensions kept of each ({store_codec_text(store)}); "
        f"model {store.model_hash[:12]} ({store.run})."
    )


def _sheet_sentence(store: Store, samples: Sequence[LabelSample], seed: int) -> str:
    if sum(len(sample.images) for sample in samples) == len(store):
        return f"All images ({len(store):,})."
    if len(samples) == 1:
        return f"{count(len(samples[0].images), 'image')} of {len(store):,}, drawn with seed {seed}."
    distinct = len(set(store.labels.distinct()))
    labels = f"{distinct} labels" if distinct <= SAMPLED else f"{len(samples)} of {distinct:,} labels"
    return f"Up to {max(len(sample.images) for sample in samples)} of each of {labels}, drawn with seed {seed}."


def _section(found: Extremes, images: int) -> dict[str, Any]:
    title, meaning, high, low = _MEANING[found.name]
    known = "all images" if found.known == images else f"{found.known:,} of {images:,} images, the others have none"
    return {
        "name": found.name,
        "title": title,
        "sentence": f"{meaning} in bits/dim, as encode measured it, of {known}. The median is {found.median:.3f}.",
        "grids": [(f"Highest, {high} first", found.highest), (f"Lowest, {low} first", found.lowest)],
        "values": {number: f"{value:.3f}" for number, value in found.values.items()},
    }


def _pair(pair: Pair, words: _Words) -> dict[str, Any]:
    both = [(number, words.of(number)) for number in (pair.first, pair.second)]
    splits = [said["split"] for _, said in both]
    return {"distance": f"{pair.distance:.3f}", "images": both, "splits": splits[0] != splits[1] and all(splits)}


def _neighbour_sentences(store: Store, found: Neighbours, seed: int) -> list[str]:
    all_of_them = len(found.images) == len(store)
    which = "All images were" if all_of_them else f"{len(found.images):,} images, drawn with seed {seed}, were"
    unit = "quantiser steps" if store.codec.name == "int" else "units of z"
    return [
        f"{which} compared, each with all others. The distance is the root mean square difference of their "
        f"{store.kept_dims:,} kept latents, in {unit}.",
        f"{same_sentence(found)}{_across(store, found)}. "
        f"Half of the images are {np.median(found.distances):.3f} or more from their nearest. "
        "No image is shown twice; flat ones tend to come first, as their latents are nearly alike.",
    ]


def same_sentence(found: Neighbours) -> str:
    """Say how many images have the latents of another one; without a full stop."""
    if not found.same:
        return "No two images have the same kept latents"
    return f"{found.same:,} images have the same kept latents as another, and thus decode to the same image"


def _across(store: Store, found: Neighbours) -> str:
    """Say how many images have the latents of one of another split, which an honest held-out split has none of."""
    across = 0 if store.splits is None else found.same_across(store.splits)
    return f"; {across:,} of them share these with an image of another split" if across else ""


def _rows(steps: Sequence[GroupStep], images: Mapping[int, ShownImage]) -> list[dict[str, Any]]:
    """Collect the table of steps: latents, and PSNR of all images with strips together."""
    errors = np.array([image.errors for image in images.values() if image.strip is not None])
    return [
        {
            "name": step.name,
            "resolution": step.resolution,
            "added": f"{step.added:,}",
            "kept": f"{step.kept:,}",
            "psnr": _decibels(decibels(errors[:, place])),
        }
        for place, step in enumerate(steps)
    ]


def _decibels(value: float | None) -> str:
    return "exact" if value is None else f"{value:.2f}"


def _data(
    store: Store,
    extremes: Sequence[Extremes],
    steps: Sequence[GroupStep],
    images: Mapping[int, ShownImage],
    words: _Words,
) -> dict[str, Any]:
    """Collect what the page's script takes."""
    return {
        "frame": frame_size(store.image_size),
        "steps": [_step_words(step, store.kept_dims) for step in steps],
        "images": {
            str(number): {
                **words.of(number),
                "figures": {found.name: found.values[number] for found in extremes if number in found.values},
                "strip": image.strip,
                "thumbnail": None if image.strip else image.thumbnail,
                "psnr": [decibels([error]) for error in image.errors],
            }
            for number, image in images.items()
        },
    }


def _step_words(step: GroupStep, dims: int) -> dict[str, str]:
    if not step.kept:
        return {"name": "No latents", "kept": "the prior's mean in all groups"}
    name = "All groups" if step.kept == dims else f"Up to group {step.end - 1}"
    return {"name": name, "kept": f"{step.kept:,} of {dims:,} latents"}


def _shown_size(size: int, largest: int) -> int:
    """Choose a whole multiple of `size` that is at most `largest` CSS pixels, or else `largest`."""
    return size * (largest // size) if size <= largest else largest
