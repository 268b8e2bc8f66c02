"""Says what a downloaded file is if it is not what was wanted: a web page, a pointer, or nothing at all."""

from __future__ import annotations

from pathlib import Path

from ..errors import ModelError


def check_download(path: Path, what: str) -> None:
    """Raise `ModelError` if `path` is missing, a folder, empty, a web page or a Git LFS pointer, and not `what`."""
    try:
        with open(path, "rb") as file:
            beginning = file.read(200)
    except FileNotFoundError:
        raise ModelError(f"there is no {what} {path}; check the path") from None
    except IsADirectoryError:
        raise ModelError(f"{path} is a folder, not a {what}; give the file in it") from None
    except OSError as error:
        raise ModelError(f"cannot read the {what} {path}: {error.strerror}") from None
    if found := _not_wanted(beginning):
        raise ModelError(f"{path} is {found}, not a {what}; download the file itself")


def _not_wanted(beginning: bytes) -> str:
    text = beginning.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not beginning:
        return "an empty file"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body", b"<error")):
        return "a web page (HTML or XML)"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, which only names the file"
    return ""
