"""Writes on terminals and into files whose encoding lacks characters, or that nobody reads on: never an error."""

from __future__ import annotations

import codecs
import os
import sys
from io import TextIOWrapper
from typing import IO

NEAR = {"±": "+/-", "×": "x", "–": "-", "…": "...", "—": "-", "’": "'", "·": "*"}


def never_fail_to_print() -> None:
    """Let standard output and errors take any text; what their encoding lacks becomes what is near it, or `?`."""
    codecs.register_error("near", _near)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="near")


def _near(error: UnicodeError) -> tuple[str, int]:
    """Replace the characters that `error` is about, as `codecs.register_error` says."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    return "".join(NEAR.get(character, "?") for character in characters), error.end


def print_to_nobody(stream: IO[str]) -> None:
    """Let `stream` take what is still printed, though whoever read it, such as `head`, has gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
