"""A look at a store: one HTML page of its images, which needs nothing else, neither files beside it nor a network.

    store ── sample of each label, largest and smallest figures, nearest pairs ── numbers of images to show
          ── decoded, at each latent group ── pictures ── look.html.j2 ──> out-look.html

Originals are not in a store: all that is shown was decoded.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..analysis.near_duplicates import Neighbours, Pair, nearest_neighbours, sample_images
from ..analysis.store_samples import Extremes, LabelSample, find_extremes, sample_labels
from ..encode.coder import LatentCoder
from ..encode.encoded_store import EncodedStore
from ..encode.image_encoder import EVALUATED
from ..errors import DataError, UsageError
from ..model.decoder import Decoder
from ..model.hvae import HVAE
from ..progress import Progress, Stage
from ..storage.files import write_atomically
from ..storage.location import Location, location_of
from ..storage.new_folder import check_above
from .look_images import ShownImage, shown_images
from .look_page import GENERATOR, render_look
from .look_steps import GroupStep, group_steps

_HEAD = 1024  # bytes of a page, in which it says what wrote it
_WRITTEN = f'name="generator" content="{GENERATOR}"'.encode()


@dataclass(frozen=True, eq=False)
class Look:
    """What a look found, and the page that shows it. Images are known by their number in the store."""

    page: Path
    page_bytes: int
    samples: list[LabelSample]  # the contact sheet
    extremes: list[Extremes]  # of those of distortion and rate that the store has
    neighbours: Neighbours | None  # None of a store of one image
    pairs: list[Pair]  # the nearest of these, each image once
    steps: list[GroupStep]  # of the slider; empty if the decoder alone is here
    images: dict[int, ShownImage]  # all that the page shows


def look(
    store: EncodedStore,
    page: Path,
    model: HVAE | Decoder | None = None,
    *,
    worst: int = 64,
    pairs: int = 24,
    images: int = 10_000,
    seed: int = 0,
    batch_size: int | None = None,
    overwrite: bool = False,
    stage: Stage | None = None,
) -> Look:
    """Write a page about `store`, decoded by `model` or what `load_decoder` loads; returns what it shows.

    The page has images of each label, the `worst` with the highest distortion and rate and as many with the lowest, the
    `pairs` of images whose kept latents are nearest, of at most `images` that are compared, and a slider through the
    latent groups, which takes a whole model. `seed` draws the samples. `batch_size` is images at once, at most.
    Missing folders of `page` are made. Raises `DataError` if there is a file at `page` that is not of `look`, and not
    `overwrite`; `UsageError` if one of the counts is below 1 or `page` is in the store; `ModelError` or `StoreError` as
    `EncodedStore.decode` does.
    """
    _check_counts(worst=worst, pairs=pairs, images=images, batch_size=1 if batch_size is None else batch_size)
    check_page(page, store.path, overwrite=overwrite)
    decoder, stage = store.decoder(model), stage or _silent
    samples = sample_labels(store, seed)
    extremes = [found for name in EVALUATED if (found := find_extremes(store, name, worst))]
    compared = sample_images(store, images, seed)
    neighbours = nearest_neighbours(store, compared, stage) if len(compared) > 1 else None
    nearest = neighbours.separate_pairs(pairs) if neighbours else []
    steps = group_steps(store) if isinstance(decoder, LatentCoder) else []
    numbers = _in_turns(samples, extremes, nearest)
    pictures = shown_images(store, decoder, numbers, steps, batch_size, stage("Decoding"))
    text = render_look(store, samples, extremes, neighbours, nearest, steps, pictures, seed)
    content = text.encode("utf-8", errors="replace")  # the name of a folder need not be valid Unicode
    check_page(page, store.path, overwrite=overwrite)  # again: it may have been written meanwhile
    page.absolute().parent.mkdir(parents=True, exist_ok=True)
    write_atomically(page, content)
    return Look(page, len(content), samples, extremes, neighbours, nearest, steps, pictures)


def default_page(store: Location) -> Path:
    """Name the page of a store: out-look.html beside out.zarr; of one in a bucket, in the working folder."""
    name = f"{Path(store.name).stem}-look.html"
    return Path(name) if store.folder is None else store.folder.parent / name


def check_page(page: Path, store: Location, *, overwrite: bool = False) -> None:
    """Raise `DataError` if something is at `page` that `look` has not written; `UsageError` if it is in the store.

    Also if `page` would be in a file. Missing folders are no error. With `overwrite`, a file at `page` is none either.
    """
    if store.folder is not None and store.folder.resolve() in page.absolute().resolve().parents:
        raise UsageError(f"{page} is in the store; give another --out")
    check_above(page)
    if page.is_dir():
        raise DataError(f"{page} is a folder; give the name of a file as --out")
    if page.exists() and not overwrite:
        with open(page, "rb") as file:
            if _WRITTEN not in file.read(_HEAD):
                raise DataError(f"{page} exists, and look has not written it; give another --out or pass --overwrite")


def page_location(text: str) -> Path:
    """Read the name of a page; `UsageError` if it is in a bucket."""
    folder = location_of(text).folder
    if folder is None:
        raise UsageError(f"{text} is in a bucket; look writes a file of this machine, so give one")
    return Path(folder)


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise UsageError(f"{name} is {count}; give 1 or more")


def _in_turns(samples: Iterable[LabelSample], extremes: Iterable[Extremes], pairs: Iterable[Pair]) -> list[int]:
    """List the images to show, each once: by turns of each section, so that each has strips if there is little room."""
    sections = [
        [pair for each in pairs for pair in (each.first, each.second)],
        *(list(numbers) for found in extremes for numbers in (found.highest, found.lowest)),
        [image for turn in itertools.zip_longest(*(sample.images for sample in samples)) for image in turn],
    ]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*sections))
    return [*dict.fromkeys(number for number in turns if number is not None)]


def _silent(name: str) -> Progress:
    return lambda done, total: None
