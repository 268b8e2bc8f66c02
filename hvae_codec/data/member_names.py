"""Names of files in archives, as a folder would have them."""

from __future__ import annotations

from ..errors import DataError
from ..storage.location import AnyPath


def checked_name(name: str, archive: AnyPath) -> str:
    """Give a member's name as a file in a folder would have it.

    Raises `DataError` if it leads out of the archive, is not UTF-8, or has a zero byte: stores hold names, and `decode`
    writes files of these names.

    >>> from pathlib import Path
    >>> checked_name("./cats//1.png", Path("a.tar"))
    'cats/1.png'
    """
    folders = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in folders or folders[0].endswith(":"):
        raise DataError(f"{archive} holds {name!r}, which leads out of it; make it again from the folder of the images")
    if "\0" in name:
        raise DataError(f"{archive} holds {name!r}, which no file can be called; make it again")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"{archive} holds {name!r}, whose name is not UTF-8; rename it") from None
    return "/".join(part for part in name.split("/") if part not in ("", ".")) if "./" in name or "//" in name else name


def is_hidden(name: str) -> bool:
    """Whether a file or a folder in a name begins with a dot, as `__MACOSX/._1.png` does.

    >>> is_hidden("cats/.1.png"), is_hidden("cats.v2/1.png")
    (True, False)
    """
    return name.startswith(".") or "/." in name
