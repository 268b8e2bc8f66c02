"""Options of every command that reads images: how they are read, which column has them, and which are left out.

A command takes them all by `takes_source_options`, as one argument `source_options`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from hvae_codec.config import ModelConfig
    from hvae_codec.data.preprocessing import Preprocessing
    from hvae_codec.data.sources import ImageSource
    from hvae_codec.data.training_and_held_out import TrainingAndHeldOut


class ColourName(StrEnum):
    """Colour that images become."""

    auto = "auto"
    rgb = "rgb"
    grey = "grey"


class ResizeName(StrEnum):
    """Ways to resize images."""

    lanczos = "lanczos"
    area = "area"
    adm = "adm"


class SplitWordsName(StrEnum):
    """Whether words in names are splits."""

    auto = "auto"
    none = "none"


class DepthName(StrEnum):
    """Bits per channel that deeper images are converted to."""

    eight = "8"


@dataclass(frozen=True)
class SourceOptions:
    """What a command line says of how images are read."""

    given: Mapping[str, Any]
    """Options of `Preprocessing`; not those that are left out, which runs and stores know."""
    skip_unusable: bool

    def open_for_run(self, data: str, model: ModelConfig, run: Path | None) -> ImageSource:
        """Open the images at `data` as those that the `model` of `run` was trained on, if it is of one.

        Raises `UsageError` if the run was begun with other options.
        """
        from hvae_codec.train.run_folder import begun_preprocessing

        return self._open(data, model, begun_preprocessing(run) if run else None, f"{run} was begun with")

    def open_training_and_held_out(
        self, data: str, val: str | None, model: ModelConfig, run: Path | None
    ) -> TrainingAndHeldOut:
        """Open the images at `data`, and those of `--val` if they are given, as `open_for_run` does.

        Raises `DataError` or `UsageError` if the two share images.
        """
        from hvae_codec.data.training_and_held_out import TrainingAndHeldOut

        other = None if val is None else self.open_for_run(val, model, run)
        return TrainingAndHeldOut(self.open_for_run(data, model, run), other)

    def open_for_store(self, data: str, model: ModelConfig, store: str) -> ImageSource:
        """Open the images at `data` as those of `store`; raises `UsageError` if that was made with other options."""
        from hvae_codec.encode.stored_preprocessing import stored_preprocessing

        return self._open(data, model, stored_preprocessing(store), f"{store} was made with")

    def _open(self, data: str, model: ModelConfig, known: Preprocessing | None, made: str) -> ImageSource:
        from hvae_codec.data.preprocessing import Preprocessing
        from hvae_codec.data.sources import has_columns, open_images

        how = known.with_given(self.given, made) if known else Preprocessing(**self.given)
        if "column" not in self.given and how.column is not None and not has_columns(data):
            how = replace(how, column=None)  # other data than the run's or the store's may be in a folder
        size, channels = model.image_size, model.channels
        return open_images(data, size=size, channels=channels, skip_unusable=self.skip_unusable, **how.to_dict())


Colour = Annotated[
    ColourName | None,
    typer.Option(
        help="What images become. auto: what the model has, grey among colour and colour among grey, too, but not "
        "if all images are the other; rgb and grey: all images.  [default: auto]"
    ),
]
Background = Annotated[
    str | None,
    typer.Option(
        help="Under transparent pixels: black, white, #rrggbb, or drop, their colours as they are.  [default: drop]"
    ),
]
Crop = Annotated[
    str | None,
    typer.Option(
        help="Part of each image: the largest square at the centre; celeba (15,40,148,148); X,Y,W,H in pixels; or "
        "none, the whole image squeezed.  [default: centre]"
    ),
]
Resize = Annotated[
    ResizeName | None,
    typer.Option(
        help="How images of another size are resized; adm: as guided diffusion does, by halves, then bicubic.  "
        "[default: lanczos]"
    ),
]
NoUpscale = Annotated[bool, typer.Option("--no-upscale", help="Do not use images that are smaller than the model's.")]
MaxPixels = Annotated[int | None, typer.Option(min=1, help="Pixels of an image file, at most (89,478,485).")]
Depth = Annotated[DepthName | None, typer.Option(help="Convert images of 16 bits per channel to 8, by value / 257.")]
Column = Annotated[
    str | None,
    typer.Option(help="Column of the images in Parquet files that have several.", show_default=False),
]
SplitWords = Annotated[
    SplitWordsName | None,
    typer.Option(
        "--splits",
        help="Whether train, val and test in names of folders, files and arrays say what is held out. none: they are "
        "classes, and a tenth of all images, chosen by a hash of their names, is held out.  [default: auto]",
    ),
]
SkipUnusable = Annotated[
    bool,
    typer.Option(
        "--skip-unusable",
        help="Leave out image files that cannot be used, and name them: broken, too deep, too large or small, ...",
    ),
]
SkipBroken = Annotated[bool, typer.Option("--skip-broken", hidden=True, help="The old name of --skip-unusable.")]


def _collect(
    colour: Colour = None,
    background: Background = None,
    crop: Crop = None,
    resize: Resize = None,
    no_upscale: NoUpscale = False,
    max_pixels: MaxPixels = None,
    depth: Depth = None,
    column: Column = None,
    splits: SplitWords = None,
    skip_unusable: SkipUnusable = False,
    skip_broken: SkipBroken = False,
) -> SourceOptions:
    words = {"colour": colour, "background": background, "crop": crop, "resize": resize, "splits": splits}
    words |= {"column": column}
    given: dict[str, Any] = {name: str(word) for name, word in words.items() if word is not None}
    given |= {"upscale": False} if no_upscale else {}
    given |= {} if max_pixels is None else {"max_pixels": max_pixels}
    given |= {} if depth is None else {"depth": int(depth)}
    return SourceOptions(given, skip_unusable or skip_broken)


_OPTIONS = tuple(inspect.signature(_collect, eval_str=True).parameters.values())
KNOWN_TO_RUN = frozenset(option.name for option in _OPTIONS) - {"skip_unusable", "skip_broken"}
"""Parameters that a run keeps, so that they need not be given to continue it."""


def takes_source_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` all of these options, and hand it what they say as `source_options`."""
    signature = inspect.signature(command, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != "source_options"]

    @functools.wraps(command)
    def run(*args: Any, **values: Any) -> None:
        options = {option.name: values.pop(option.name) for option in _OPTIONS if option.name in values}
        command(*args, source_options=_collect(**options), **values)

    run.__signature__ = signature.replace(parameters=[*own, *_OPTIONS])  # type: ignore[attr-defined]
    return run
