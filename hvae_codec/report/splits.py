"""Words for the splits of a data set: how many images are for what, and which ones a figure is of."""

from __future__ import annotations

from ..data.sources import ImageSource
from .counts import count

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


def splits_sentence(source: ImageSource) -> str:
    """Say how many images are for training, held out, and neither, and by which folders."""
    splits = source.splits
    training, held_out, folders = len(splits.train), len(splits.val), splits.folders
    if not splits.is_held_out:
        return f"training images: {training:,}; {NONE_HELD_OUT}"
    if not folders:
        how = "(a tenth, chosen by a hash of their names)"
        return f"training images: {training:,}; held-out images: {held_out:,} {how}"
    outside = f"outside {' and '.join([*folders['val'], *folders['test']])}"
    of_training = " and ".join(folders["train"]) or outside
    of_held_out = " and ".join(folders["val"] or folders["test"])
    text = f"training images: {f'{training:,} ({of_training})' if training else 'none'}"
    text += f"; held-out images: {held_out:,} ({of_held_out})"
    tested = len(splits.test) if folders["val"] else 0
    others = len(source) - training - held_out - tested
    unused = [f"{tested:,} ({' and '.join(folders['test'])})"] if tested else []
    unused += [f"{others:,} ({'others' if source.container.parts else 'other folders'})"] if others else []
    return f"{text}; neither: {', '.join(unused)}" if unused else text
