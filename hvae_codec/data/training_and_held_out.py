"""Images to train or rank on, and held-out images to measure on: the splits of one source, or two sources.

TrainingAndHeldOut(data)           training: its train split      held out: its val split
TrainingAndHeldOut(data, val)      training: data, all of it      held out: val, all of it
                                   but for val and test parts     but for other parts, if it has any
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from .shared_images import check_nothing_shared, check_two_sources
from .sources import ImageSource
from .splits import Split


@dataclass(frozen=True, eq=False)
class TrainingAndHeldOut:
    """The two kinds of images; nothing that is held out in either source is for training.

    Raises `UsageError` if `val` is `data`, and `DataError` if they share images.
    """

    data: ImageSource
    val: ImageSource | None = None  # held-out images of a source of their own: its val or test part, or all

    def __post_init__(self) -> None:
        if self.val is not None:
            check_two_sources(self.data, self.val)
            if self.has_training:
                check_nothing_shared(self.training, self.held_out)

    @property
    def sources(self) -> tuple[ImageSource, ...]:
        """The sources, one or two."""
        return (self.data,) if self.val is None else (self.data, self.val)

    @property
    def wholes(self) -> tuple[ImageSource, ...]:
        """The sources, each said to be held out or not if all of its images are, or are not."""
        if self.val is None:
            return (self.data,)
        data = self.training if self._is_all_for_training else self.data
        return data, self.val if self.val.splits.folders else self.held_out

    @property
    def has_training(self) -> bool:
        """Whether there are images for training."""
        return self._is_all_for_training or self.data.has_split("train")

    @cached_property
    def training(self) -> ImageSource:
        """Those for training, or to rank on; raises `DataError` if all images are held out."""
        return replace(self.data, held_out=False) if self._is_all_for_training else self.data.split("train")

    @cached_property
    def held_out(self) -> ImageSource:
        """Those to measure on; all images if `data` is the only source and too small for any to be held out."""
        if self.val is None:
            return self.data.split("val")
        return self.val.split("val") if self.val.splits.folders else replace(self.val, held_out=True)

    def split(self, which: Split) -> ImageSource:
        """Select the images for training, the held-out ones, those of the test part of `data`, or all of `data`.

        Raises `DataError` if there are none.
        """
        if which == "train":
            return self.training
        return self.held_out if which == "val" else self.data.split(which)

    @property
    def _is_all_for_training(self) -> bool:
        return self.val is not None and not self.data.splits.folders
