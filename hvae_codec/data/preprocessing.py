"""How images are read: column, colour, background, crop, size, depth, the meaning of names; runs and stores keep it.

    Preprocessing(crop="celeba").to_dict()      {"crop": "celeba"}: what is not the default, so that old records stay

`column` says which images of a table are meant. `colour`, `upscale`, `max_pixels` and `depth` say which images can be
read; the pixels of an image that can be read without them are the same with them. `splits` decides no pixels, but which
images are held out, and their classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from ..errors import DataError, UsageError
from .splits import SplitWords

Colour = Literal["auto", "rgb", "grey"]
Resize = Literal["lanczos", "area", "adm"]
Box = tuple[int, int, int, int]
"""Left, top, width and height, pixels."""

MAX_PIXELS = 89_478_485
"""Larger images are refused (Pillow's own limit): a small file can unpack to more memory than there is."""

CELEBA = (15, 40, 148, 148)
"""The face in an aligned CelebA image of 178 × 218 pixels, as the hierarchical VAEs of CelebA 64 were trained on it."""

_COLOURS = {"black": "#000000", "white": "#ffffff"}
_OF_PIXELS = ("background", "crop", "resize")
"""Options that decide the pixels of every image, so that a model and a store know one value of each."""
_FIXED = (*_OF_PIXELS, "splits")
"""Those, and what is never changed later either: with other splits, held-out images would be those trained on."""

_OTHER_SPLITS = (
    ", as with others, images that were trained on may count as held out; --split all takes all images, whatever they "
    "are for"
)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What is done to images. Raises `UsageError` if an option has no such value."""

    colour: Colour = "auto"  # what images become: what the model has; "auto" only if some image has it already
    background: str = "drop"  # under transparent pixels: black, white, #rrggbb; or drop, their colours as they are
    crop: str = "centre"  # the largest square in the middle; X,Y,W,H, in pixels; celeba; or none, the whole, squeezed
    resize: Resize = "lanczos"  # how what is left becomes of the model's size
    upscale: bool = True  # whether images that are smaller than the model's are used
    max_pixels: int = MAX_PIXELS  # height times width of a file's image, at most
    depth: int | None = None  # 8 if images of 16 bits are converted, by value / 257
    column: str | None = None  # of images, in a table such as Parquet that may have several; None is the only one
    splits: SplitWords = "auto"  # "none" if words such as test in names are no splits, but classes

    def __post_init__(self) -> None:
        for name, kind in (("colour", Colour), ("resize", Resize), ("splits", SplitWords)):
            _check(name, getattr(self, name), getattr(self, name) in get_args(kind), " or ".join(get_args(kind)))
        colour = _COLOURS.get(self.background, self.background)
        is_colour = isinstance(colour, str) and (colour == "drop" or re.fullmatch("#[0-9a-fA-F]{6}", colour))
        _check("background", self.background, bool(is_colour), "black, white, #rrggbb or drop")
        self._check_crop()
        _check("upscale", self.upscale, isinstance(self.upscale, bool), "True or False")
        number = isinstance(self.max_pixels, int) and 1 <= self.max_pixels < 2**63
        _check("max_pixels", self.max_pixels, number, "a number of pixels of at least 1")
        _check("depth", self.depth, self.depth in (None, 8), "8, or leave it out")
        is_name = self.column is None or (isinstance(self.column, str) and self.column != "")
        _check("column", self.column, is_name, "the name of a column")

    def _check_crop(self) -> None:
        box = re.fullmatch(r"\d{1,9},\d{1,9},(\d{1,9}),(\d{1,9})", str(self.crop))
        square = box is not None and int(box[1]) == int(box[2]) > 0
        wanted = "centre, celeba, none, or X,Y,W,H in pixels with W = H, as the model takes squares"
        _check("crop", self.crop, self.crop in ("centre", "celeba", "none") or square, wanted)

    @property
    def box(self) -> Box | None:
        """The part of each image that is taken; None if that depends on its size."""
        if self.crop == "celeba":
            return CELEBA
        left, *others = map(int, self.crop.split(",")) if "," in self.crop else (0,)
        return (left, others[0], others[1], others[2]) if others else None

    @property
    def background_colour(self) -> str | None:
        """The colour under transparent pixels as #rrggbb; None if only their alpha is dropped."""
        return None if self.background == "drop" else _COLOURS.get(self.background, self.background.lower())

    @property
    def pixel_options(self) -> dict[str, Any]:
        """What decides the pixels and is not the default, in one spelling for each value."""
        crop = ",".join(map(str, self.box)) if self.box else self.crop
        spelled = {"background": self.background_colour or "drop", "crop": crop, "resize": self.resize}
        return {name: value for name, value in spelled.items() if value != getattr(Preprocessing, name)}

    def to_dict(self) -> dict[str, Any]:
        """Return the options that are not the default, plain data."""
        return {name: value for name, value in asdict(self).items() if value != getattr(Preprocessing, name)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], owner: str) -> Preprocessing:
        """Read what `to_dict` gave; raises `DataError` that names `owner` if it has what is not known here."""
        try:
            return cls(**data)
        except (TypeError, UsageError) as error:
            problem = f"{owner} was made with preprocessing that this version does not know ({error})"
            raise DataError(f"{problem}; use the version it was made with, or a newer one") from None

    def with_given(self, given: Mapping[str, Any], made: str) -> Preprocessing:
        """Return these options and those `given` beside them; `made` is "RUN was begun with".

        Raises `UsageError` if one that is given contradicts these: another background, crop, resize or splits, or
        another value of an option that has one already. A column may be another one, as that of other data may be.
        """
        options = {name: value for name, value in given.items() if (name, value) != ("colour", "auto")}
        wanted = replace(self, **options)
        for name in options:
            said = name in _FIXED or getattr(self, name) != getattr(Preprocessing, name)
            if said and name != "column" and _spelled(self, name) != _spelled(wanted, name):
                problem = f"{made} {_option(self, name)}, not {getattr(wanted, name)}; leave out {_flag(name)}"
                raise UsageError(f"{problem}{_OTHER_SPLITS if name == 'splits' else ''}")
        return wanted

    def check_same(self, other: Preprocessing, made: str) -> None:
        """Raise `DataError` if `other` makes other pixels or splits than these, which something was `made` with."""
        for name in _FIXED:
            if _spelled(self, name) != _spelled(other, name):
                found = f"the images were opened with {name}={getattr(other, name)!r}"
                raise DataError(f"{made} {_option(self, name)}, and {found}; open them with that")

    def joined(self, other: Preprocessing) -> Preprocessing:
        """Return options that read every image which these or `other` read; both make the same pixels."""
        return replace(
            self,
            colour=other.colour if self.colour == "auto" else self.colour,
            upscale=self.upscale or other.upscale,
            max_pixels=max(self.max_pixels, other.max_pixels),
            depth=self.depth or other.depth,
            column=self.column or other.column,
        )

    def flags(self) -> str:
        """Write the options as the command line has them, without defaults."""
        return " ".join(_option(self, name) for name in self.to_dict())


def _check(name: str, value: object, fits: bool, wanted: str) -> None:
    if not fits:
        raise UsageError(f"{_flag(name)} is {value!r}; give {wanted}")


def _spelled(options: Preprocessing, name: str) -> Any:
    return options.pixel_options.get(name) if name in _OF_PIXELS else getattr(options, name)


def _flag(name: str) -> str:
    return "--no-upscale" if name == "upscale" else f"--{name.replace('_', '-')}"


def _option(options: Preprocessing, name: str) -> str:
    value = getattr(options, name)
    return _flag(name) if value is False else f"{_flag(name)} {value}"
