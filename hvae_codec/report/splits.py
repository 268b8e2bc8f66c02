"""Words for the splits of a data set: how many images are for what, and which ones a figure is of."""

from __future__ import annotations

from ..data.copied_images import find_copies
from ..data.odd_layouts import OddLayout, find_odd_layouts
from ..data.sources import ImageSource
from ..data.splits import Split
from ..data.training_and_held_out import TrainingAndHeldOut
from ..progress import Progress
from .counts import count

SHOWN_CLASSES = 4  # names of class folders in a sentence

NONE_HELD_OUT = "no image is held out, so all figures are of training images"


def image_kind(held_out: bool | None) -> str:
    """Name the kind of images that figures are of: `held-out`, `training`, or nothing if that is not known."""
    return "" if held_out is None else "held-out" if held_out else "training"


def count_images(number: int, held_out: bool | None) -> str:
    """Write a number of images and their kind.

    >>> count_images(800, True), count_images(1, False), count_images(12, None)
    ('800 held-out images', '1 training image', '12 images')
    """
    return count(number, f"{image_kind(held_out)} image".strip())


def known_images_sentence(split: Split, held_out: bool | None) -> str:
    """Say that figures are of images that the model may have been trained on; empty if they are of held-out ones.

    >>> known_images_sentence("val", True), known_images_sentence("train", False)
    ('', 'All figures are of training images (--split train).')
    """
    if split == "val":
        return "" if held_out else f"{NONE_HELD_OUT.capitalize()}."
    kinds = {"train": "training images", "all": "all images, held out or not"}
    return f"All figures are of {kinds[split]} (--split {split})." if split in kinds else ""


def splits_sentence(images: TrainingAndHeldOut) -> str:
    """Say how many images are for training, held out, and neither, and what says so."""
    if images.val is not None:
        return _two_sources_sentence(images, images.val)
    source, splits = images.data, images.data.splits
    training, held_out, folders = len(splits.train), len(splits.val), splits.folders
    if not splits.is_held_out:
        return f"train {training:,}; {NONE_HELD_OUT}"
    if not folders:
        return f"train {training:,}, held out {held_out:,} (a tenth, chosen by a hash of their names)"
    outside = f"outside {' and '.join([*folders['val'], *folders['test']])}"
    of_training = " and ".join(folders["train"]) or outside
    of_held_out = " and ".join(folders["val"] or folders["test"])
    text = f"train {f'{training:,} ({of_training})' if training else 'none'}, held out {held_out:,} ({of_held_out})"
    tested = len(splits.test) if folders["val"] else 0
    others = len(source) - training - held_out - tested
    unused = [f"{tested:,} ({' and '.join(folders['test'])})"] if tested else []
    unused += [f"{others:,} ({'others' if source.container.parts else 'other folders'})"] if others else []
    return f"{text}; neither: {', '.join(unused)}" if unused else text


def _two_sources_sentence(images: TrainingAndHeldOut, val: ImageSource) -> str:
    training, held_out = len(images.training) if images.has_training else 0, len(images.held_out)
    of_training, of_held_out = images.data.container.path, val.container.path
    text = f"train {f'{training:,} ({of_training})' if training else 'none'}, held out {held_out:,} ({of_held_out})"
    others = {of_training: len(images.data) - training, of_held_out: len(val) - held_out}
    unused = [f"{number:,} (others in {path})" for path, number in others.items() if number]
    return f"{text}; neither: {', '.join(unused)}" if unused else text


def copies_sentence(images: TrainingAndHeldOut, progress: Progress | None = None) -> str:
    """Say how many held-out images of a source of their own have the content of training images, with an example.

    Empty if there is no such source, or if none was found; see `find_copies`, which reads the images.
    """
    if images.val is None or not images.has_training:
        return ""
    copies = find_copies(images.training, images.held_out, progress)
    number = len(copies.held_out)
    if not number:
        return ""
    one = images.val.container.path / images.held_out.names[copies.held_out[0]]
    other = images.data.container.path / images.training.names[copies.training[0]]
    all_of_them = count(len(images.held_out), "held-out image")
    found = f"{'' if copies.is_complete else 'at least '}{number:,} of the {all_of_them}"
    return (
        f"{found} {'is a copy' if number == 1 else 'are copies'} of training images, as {one} is of {other}: figures "
        "of held-out images are better than they should be; remove the copies from one of the two"
    )


def odd_layout_sentences(source: ImageSource) -> list[str]:
    """Say of each folder that may be a class what it was taken for, and what overrules that."""
    if source.preprocessing.splits == "none" or source.container.parts is not None:
        return []
    return [_odd_layout_sentence(layout) for layout in find_odd_layouts(source.names)]


def _odd_layout_sentence(layout: OddLayout) -> str:
    images = count(layout.images, "image")
    kind = f"{images} without a class" if layout.part == "train" else f"{images} to hold out"
    beside = ", ".join(layout.beside[:SHOWN_CLASSES]) + (", ..." if len(layout.beside) > SHOWN_CLASSES else "")
    return (
        f"{layout.folder} was taken for {kind}, and {beside} beside it for classes; if it is a class, too, give "
        "--splits none from the first command on"
    )
