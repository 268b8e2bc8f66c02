"""Codecs: latents z to the numbers in a store, and back.

A codec rounds; it does not compress (the store does that). Both directions are here, and they work unchanged on numpy
arrays and on torch tensors, with bit-identical results: encoder and decoder may each use either.

    z ── encode(z, step) ──> stored numbers ── decode(stored, step) ──> z', and encode(z', step) gives the same numbers

`int` divides by a step, one a channel, and rounds; `float16` and `float32` keep z as it is and have steps of 1.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar, cast

import numpy as np

from ..errors import UsageError

Array = TypeVar("Array")  # a numpy array or a torch tensor, of any shape

# -32768 marks numbers that were never written.
MAX_CODE = 32767
CODE_TYPES = ("int8", "int16")  # what arrays of codes may hold
# Steps outside this range come from collapsed or exploded posteriors; within it, float32 keeps every code exactly.
MIN_STEP, MAX_STEP = 1e-6, 1e6


def missing_value(dtype: str) -> float | int:
    """What elements of an array of stored numbers read as that were never written: never a stored number.

    >>> missing_value("int8"), missing_value("int16"), missing_value("float16")
    (-128, -32768, nan)
    """
    return int(np.iinfo(dtype).min) if np.dtype(dtype).kind == "i" else math.nan


class ClippedError(UsageError):
    """Latents that a codec has no numbers for: encoding them again gives the same."""


class Codec(Protocol):
    """How latents become stored numbers; its `to_dict` goes into the store and `codec_from_dict` restores it."""

    @property
    def name(self) -> str:
        """`int`, `float16` or `float32`."""

    @property
    def dtype(self) -> str:
        """Numpy name of the stored numbers' type."""

    @property
    def limit(self) -> float:
        """The largest stored number: a larger z is clipped to it."""

    @property
    def remedy(self) -> str:
        """What to give if latents are clipped."""

    @property
    def fill_value(self) -> float | int:
        """Never a stored number: what unwritten images read as. NaN also encodes to it."""

    def steps(self, posterior_std: np.ndarray) -> np.ndarray:
        """Steps, float32 [channels], for the channels' average posterior std [channels]."""

    def encode(self, z: Array, step: Any) -> Array:
        """Stored numbers for float32 z; `step` broadcasts against z."""

    def decode(self, stored: Array, step: Any) -> Array:
        """Float32 z for stored numbers; the inverse of `encode` up to rounding."""

    def to_dict(self) -> dict[str, Any]:
        """JSON data for `codec_from_dict`."""


@dataclass(frozen=True)
class IntCodec:
    """Integer codes: z divided by the step and rounded half to even, saturating at ±32767.

    Inside that range |z - decode(encode(z))| is at most half a step, up to float32 rounding.
    """

    step: float = 1.0  # step in units of the channel's average posterior std

    name: ClassVar[str] = "int"
    dtype: ClassVar[str] = "int16"
    limit: ClassVar[float] = MAX_CODE
    remedy: ClassVar[str] = "a larger --step, or --codec float16 or float32"
    fill_value: ClassVar[int] = -32768

    def __post_init__(self) -> None:
        if not (math.isfinite(self.step) and self.step > 0):
            raise UsageError(f"the quantiser step is {self.step}; it must be a number above 0, such as 1.0")

    def steps(self, posterior_std: np.ndarray) -> np.ndarray:
        """Std × step, within 1e-6 and 1e6; `UsageError` if a std is not a number."""
        std = np.asarray(posterior_std, dtype=np.float64)
        if not (np.isfinite(std).all() and (std >= 0).all()):
            raise UsageError("a posterior std is negative or not finite; the model is damaged or diverged in training")
        return np.clip(std * self.step, MIN_STEP, MAX_STEP).astype(np.float32)

    def encode(self, z: Array, step: Any) -> Array:
        """Codes, int16; NaN becomes the fill value, which no store accepts."""
        codes = (cast(Any, z) / step).round().clip(-MAX_CODE, MAX_CODE)
        return cast(Array, _convert(_replace_nan(codes, self.fill_value), self.dtype))

    def decode(self, stored: Array, step: Any) -> Array:
        """Code × step."""
        return cast(Array, _convert(stored, "float32") * step)

    def to_dict(self) -> dict[str, Any]:
        """Its name and step."""
        return {"name": self.name, "step": self.step}


@dataclass(frozen=True)
class FloatCodec:
    """Floats as they are, rounded to `dtype` and saturating at its largest finite number; steps are 1."""

    dtype: str  # `float16` or `float32`

    fill_value: ClassVar[float] = math.nan

    @property
    def name(self) -> str:
        """The dtype."""
        return self.dtype

    @property
    def limit(self) -> float:
        """The largest finite number."""
        return float(np.finfo(self.dtype).max)

    @property
    def remedy(self) -> str:
        """Floats of more bits, if there are any."""
        return "--codec float32" if self.dtype == "float16" else "another model: this one diverged in training"

    def steps(self, posterior_std: np.ndarray) -> np.ndarray:
        """Ones."""
        return np.ones(np.shape(posterior_std), dtype=np.float32)

    def encode(self, z: Array, step: Any) -> Array:
        """Floats of `dtype`."""
        return cast(Array, _convert(cast(Any, z).clip(-self.limit, self.limit), self.dtype))

    def decode(self, stored: Array, step: Any) -> Array:
        """The same as float32."""
        return cast(Array, _convert(stored, "float32"))

    def to_dict(self) -> dict[str, Any]:
        """Its name."""
        return {"name": self.name}


CODECS: Mapping[str, Callable[[float], Codec]] = {
    "int": IntCodec,
    "float16": lambda _: FloatCodec("float16"),
    "float32": lambda _: FloatCodec("float32"),
}
"""By name; each is made with a step, which floats do not have."""


def make_codec(name: str, step: float = 1.0) -> Codec:
    """The codec of this name; `step` counts for `int` only. `UsageError` on other names and steps.

    >>> make_codec("int", step=2.0)
    IntCodec(step=2.0)
    """
    if name == "int" and not MIN_STEP <= step <= MAX_STEP:
        raise UsageError(f"the quantiser step is {step}; it must be {MIN_STEP:g} to {MAX_STEP:g}, such as 1.0")
    return _kind(name)(step)


def _kind(name: str) -> Callable[[float], Codec]:
    if name not in CODECS:
        raise UsageError(f"there is no latent codec {name!r}; choose {', '.join(CODECS)}")
    return CODECS[name]


def codec_from_dict(data: Mapping[str, Any]) -> Codec:
    """The inverse of `Codec.to_dict`; `UsageError` if `data` describes no codec of this version."""
    try:
        step = data.get("step", 1.0)
        float(step)  # a number, which stays 2 or 2.0 as it is: a store's fingerprint is of its text
        return _kind(data["name"])(step)  # also with a step that is not made any more
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UsageError(f"{data!r} describes no latent codec; it needs a name: {', '.join(CODECS)}") from None


def check_clipped(codec: Codec, stored: Mapping[int, np.ndarray], images: str) -> None:
    """Raise `ClippedError` if numbers of `images`, by resolution, were clipped: they decode to something else."""
    clipped = sum(int(np.count_nonzero(np.abs(numbers) >= codec.limit)) for numbers in stored.values())
    if clipped:
        count = sum(numbers.size for numbers in stored.values())
        given = ", ".join([codec.name, *(f"{key} {value}" for key, value in codec.to_dict().items() if key != "name")])
        raise ClippedError(
            f"{clipped:,} of {count:,} latents of {images} are clipped at ±{codec.limit:g} by the codec {given}; give "
            f"{codec.remedy}"
        )


def _convert(array: Any, dtype: str) -> Any:
    if isinstance(array, np.ndarray | np.generic):
        return array.astype(dtype)
    # A tensor exists, so torch is loaded; importing it here would slow down all who only read a store.
    return array.to(getattr(sys.modules["torch"], dtype))


def _replace_nan(array: Any, value: float) -> Any:
    return np.nan_to_num(array, nan=value) if isinstance(array, np.ndarray | np.generic) else array.nan_to_num(value)
