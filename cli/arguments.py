"""Checks the words of a command line before they are read, and says what is wrong with one that cannot be."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from typer.exceptions import TyperException

from hvae_codec.errors import UsageError

P = ParamSpec("P")
T = TypeVar("T")


def checked(arguments: Sequence[str]) -> list[str]:
    """Return the arguments as a shell means them: it leaves the ~ of `--out=~/x` to the program.

    Raises `UsageError` if one is empty, as a variable that is not set leaves it.
    """
    for before, word in zip(["hvae-codec", *arguments], arguments, strict=False):
        if not word or re.fullmatch("--[a-z-]+=", word):
            where = word or f"after {before}"
            raise UsageError(
                f"there is an empty value ({where}), as of a variable that is not set; give one, or leave it out"
            )
    return [_with_home(word) for word in arguments]


def _with_home(word: str) -> str:
    option, equals, value = word.partition("=")
    return f"{option}={os.path.expanduser(value)}" if equals and value.startswith("~") else word


def with_local_paths(command: Callable[P, T]) -> Callable[P, T]:
    """Wrap `command` so that a URL where only a path can be is refused, not taken for a folder called `s3:`."""

    @functools.wraps(command)
    def run(*args: P.args, **values: P.kwargs) -> T:
        for value in values.values():
            for path in value if isinstance(value, list) else [value]:
                _check_local(path)
        return command(*args, **values)

    return run


def _check_local(path: Any) -> None:
    url = re.match("([a-z][a-z0-9+.-]+):/", str(path)) if isinstance(path, Path) else None
    if url and not Path(url[0]).exists():
        text = str(path).replace(":/", "://", 1)
        raise UsageError(
            f"{text} is a URL, and only images and stores can be at one; give the path of a file or folder"
        )


def usage_sentence(error: TyperException, arguments: Sequence[str]) -> str:
    """Say what is wrong with `arguments`, with the value, and where help is.

    >>> usage_sentence(TyperException("Invalid value for '--steps': Input should be a valid integer"), ["--steps=x"])
    '--steps is x; it should be a valid integer'
    """
    text = error.format_message().replace("Value error, ", "")
    invalid = re.fullmatch(r"Invalid value for '(\S+)'[^:]*: Input (should be .*?)(, unable to parse .*)?", text)
    if invalid:
        return f"{invalid[1]} is {_value(invalid[1], arguments)}; it {invalid[2]}"
    context = getattr(error, "ctx", None)
    return f"{text.rstrip('.')}; see {context.command_path} --help" if context else text


def _value(option: str, arguments: Sequence[str]) -> str:
    """Find what was typed as the value of `option`."""
    for word, value in zip(arguments, [*arguments[1:], ""], strict=True):
        if word == option:
            return value
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return "not one that can be used"
