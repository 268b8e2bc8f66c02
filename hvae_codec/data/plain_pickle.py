"""Reads pickles that hold nothing but data, and never calls what they name.

A pickle can call any function of any module. Here, the few names that NumPy's arrays need stand for classes of this
file, which take the bytes as they are. Every other name is an error, and nothing of it runs.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any

import numpy as np
from numpy.typing import NDArray


def load_plain(content: bytes) -> Any:
    """Read a pickle of a dict of lists, numbers, texts, bytes and arrays of uint8; texts of Python 2 are bytes.

    Raises `ValueError` if it is damaged or holds anything else.
    """
    try:
        _check_numbers(content)
        return _with_arrays(_PlainUnpickler(io.BytesIO(content), encoding="bytes").load())
    except Exception as error:  # damaged pickles raise nearly every type there is
        raise ValueError(str(error) or type(error).__name__) from None


def _check_numbers(content: bytes) -> None:
    """Raise `ValueError` if objects are numbered higher than there are bytes: Python makes a list of that length."""
    for operation, number, _ in pickletools.genops(content):
        if "PUT" in operation.name and int(number or 0) > len(content):
            raise ValueError(f"it numbers an object {number}")


def _with_arrays(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.values
    return {key: _with_arrays(item) for key, item in value.items()} if type(value) is dict else value


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Give what stands for a name; raises `ValueError` if it is none that arrays need."""
        known = _KNOWN.get((module.replace("numpy._core.", "numpy.core."), name))
        if known is None:
            raise ValueError(f"it names {module}.{name}, and only arrays and plain values are read")
        return known


class _Type:
    """Stands for `numpy.dtype`."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        self.code = code.decode("ascii") if isinstance(code, bytes) else code

    def __setstate__(self, state: object) -> None:
        """Take no notice of byte order and alignment: values are single bytes."""


class _Array:
    """Stands for `numpy.ndarray`, and for NumPy's function that makes an empty one, which gets its state then."""

    def __init__(self, *_: object) -> None:
        self.values: NDArray[np.uint8] | None = None

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Type, bool, bytes]) -> None:
        """Take the shape and the bytes of the values; raises `ValueError` if they are others than bytes."""
        _, shape, kind, fortran_order, content = state
        if not isinstance(kind, _Type) or kind.code not in ("u1", "|u1") or not isinstance(content, bytes):
            raise ValueError("it has an array of other values than bytes")
        self.values = np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran_order else "C")


class _Bytes(bytes):
    """Stands for `_codecs.encode`: Python 3 writes bytes as texts in Latin-1 for older protocols."""

    def __new__(cls, text: str | bytes, *_: object) -> _Bytes:
        """Encode `text` in Latin-1."""
        return super().__new__(cls, text.encode("latin1") if isinstance(text, str) else text)

    def __setstate__(self, state: object) -> None:
        """Take no state; with this method, no pickle can give the class one either."""


_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _Bytes,
}
"""Names that pickled arrays and bytes have, and what stands for them."""
