"""Reads files of `torch.save`, in both of its containers: tensors and plain data, and nothing that could run code."""

from __future__ import annotations

import errno
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import IO

import torch

from ..errors import ModelError
from .downloads import check_download

_ZIP = b"PK\x03\x04"
_ONE_STREAM = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # a pickled number, the first thing in the older container
_HEADS = 4  # pickles in the older container up to the one with the tensors' names
_LARGEST_PICKLE = 2**28  # bytes of names and shapes; those of a published model take less than a million

_DAMAGE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    MemoryError,
    struct.error,
)
"""What torch raises on content that it did not write."""


class UnsafeFileError(ModelError):
    """A file that holds more than tensors and plain data; none of it was run."""


def read_torch_file(path: Path) -> object:
    """Load what `torch.save` put into a file, with all tensors on the CPU.

    Raises `UnsafeFileError` if it holds more than tensors and plain data, `ModelError` if it is missing, incomplete or
    no file of `torch.save`.
    """
    check_download(path, "checkpoint")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols, for the authors of checkpoints
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, *_DAMAGE) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # as torch seeks before the file's beginning
            raise ModelError(f"cannot read the checkpoint {path}: {error.strerror or error}") from None
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UnsafeFileError(
                f"{path} holds more than tensors and plain data ({found[1]}), which could run code; refused"
            ) from None
        raise ModelError(f"cannot read the checkpoint {path}: {_what_is_wrong(path)}") from None


def _what_is_wrong(path: Path) -> str:
    """Say what became of a file that is not read to its end."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        beginning = file.read(len(_ONE_STREAM))
    if beginning.startswith(_ZIP) and zipfile.is_zipfile(path):
        return "it is a zip archive, but no whole one of torch.save; give the file as it was published"
    if beginning.startswith((_ZIP, _ONE_STREAM)):
        return f"it ends too early, after {size:,} bytes, as half a download does; download it again"
    return "it is no file of torch.save; give the file as it was published"


def texts_in(path: Path) -> Iterator[str]:
    """Yield the texts in a file of `torch.save`, names of tensors among them, without unpickling anything.

    Ends early if the file does.
    """
    try:
        with closing(_pickles(path)) as stream:
            for _ in range(_HEADS):
                for _, text, _ in pickletools.genops(stream):
                    if isinstance(text, str):
                        yield text
    except (OSError, ValueError, LookupError, zipfile.BadZipFile, struct.error):
        return


def _pickles(path: Path) -> IO[bytes]:
    if not zipfile.is_zipfile(path):
        return open(path, "rb")
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if entry.filename.endswith("data.pkl")]
        if not entries or entries[0].file_size > _LARGEST_PICKLE:
            return BytesIO()
        return BytesIO(archive.read(entries[0]))
