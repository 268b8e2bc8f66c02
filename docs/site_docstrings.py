"""Make this project's docstrings and comments into Markdown for the API pages.

    field: int = 3  # what it is      ──> a row of a table below the class's docstring
    name: what it is                  ──> an item of a list, if `name` is a parameter
    a line that ends before it is full ──> the end of a paragraph; so is what comes before "Raises"
    `StoreError`                      ──> a link, if it has an entry on an API page
    >>> an example                    ──> a block of code

mkdocstrings reads the code with griffe, which calls `on_package` (`extensions` in mkdocs.yml). Nothing is imported.
"""

from __future__ import annotations

import inspect
import io
import itertools
import re
import tokenize
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import griffe

API = Path(__file__).parent / "api"
ENTRY = re.compile(r"^::: (\S+)", re.MULTILINE)
FULL_LINE = 108
"""A line of a docstring that could take the next word and stay below this was ended on purpose."""


class ProjectDocstrings(griffe.Extension):
    """Rewrites the docstrings of a package once it is loaded."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Rewrite all docstrings of `pkg`."""
        entries = {entry.rpartition(".")[2]: entry for entry in api_entries()}
        for thing in _below(pkg):
            if isinstance(thing, griffe.Class):
                thing.bases = [base for base in thing.bases if not str(base).startswith("_")]
                _add_fields(thing)
            if thing.docstring:
                names = {name: entry for name, entry in entries.items() if name != thing.name}
                thing.docstring.value = markdown(thing.docstring.value, _parameters(thing), names)


def api_entries() -> list[str]:
    """List what has an entry on an API page, such as `hvae_codec.Store`."""
    return [entry for page in sorted(API.glob("*.md")) for entry in ENTRY.findall(page.read_text(encoding="utf-8"))]


def markdown(docstring: str, parameters: set[str], entries: Mapping[str, str]) -> str:
    """Rewrite a docstring; `entries` are names that become links, and where to."""
    blocks = inspect.cleandoc(docstring).split("\n\n")
    return "\n\n".join(_with_links(_with_paragraphs(_with_list(block, parameters)), entries) for block in blocks)


def _with_list(block: str, parameters: set[str]) -> str:
    lines = block.split("\n")
    meant = [re.match(r"(\w+): ", line) for line in lines]
    if not all((m and m[1] in parameters) or line.startswith(" ") for m, line in zip(meant, lines, strict=True)):
        return block
    return "\n".join(re.sub(r"^(\w+): ", r"- `\1`: ", line) for line in lines)


def _with_paragraphs(block: str) -> str:
    if block.startswith(">>>"):
        return f"```pycon\n{block}\n```"
    if block.startswith(("- ", " ", "|")):
        return block
    lines = block.split("\n")
    text = lines[0]
    for line, following in itertools.pairwise(lines):
        is_ended = line.endswith(".") and len(line) + 1 + len(following.split(" ", 1)[0]) < FULL_LINE
        text += ("\n\n" if is_ended else "\n") + following
    return re.sub(r"(?<=[.)])\s+(?=Raises )", "\n\n", text)


def _with_links(block: str, entries: Mapping[str, str]) -> str:
    if block.startswith((" ", "```", "|")):
        return block
    return re.sub(r"`(\w+)`", lambda m: f"[{m[0]}][{entries[m[1]]}]" if m[1] in entries else m[0], block)


def _add_fields(cls: griffe.Class) -> None:
    """Add a table of the fields of a dataclass or a named tuple, with the comments beside or above them.

    Types and defaults are in the signature.
    """
    comments = _comments(cls.filepath) if isinstance(cls.filepath, Path) else {}
    meanings = {field.name: _meaning(field, comments) for field in cls.attributes.values() if _is_field(cls, field)}
    rows = [f"| `{name}` | {meaning} |" for name, meaning in meanings.items() if meaning]
    if rows and cls.docstring:
        table = "\n".join(["| field | |", "|---|---|", *rows])
        cls.docstring.value = f"{inspect.cleandoc(cls.docstring.value)}\n\n{table}"


def _is_field(cls: griffe.Class, attribute: Any) -> bool:
    if attribute.is_alias or attribute.docstring or attribute.name.startswith("_") or not attribute.annotation:
        return False
    is_record = "dataclass" in cls.labels or any("NamedTuple" in str(base) for base in cls.bases)
    return is_record and "property" not in attribute.labels and "ClassVar" not in str(attribute.annotation)


def _meaning(attribute: griffe.Attribute, comments: Mapping[int, tuple[str, bool]]) -> str:
    """Return the comment on the lines of `attribute` or, if there is none, the one above it."""
    first, last = attribute.lineno or 0, attribute.endlineno or 0
    beside = [comments[line][0] for line in range(first, last + 1) if line in comments]
    above: list[str] = []
    while not beside and (line := comments.get(first - 1)) and line[1]:
        above.insert(0, line[0])
        first -= 1
    return " ".join(beside or above).replace("|", "\\|")


@cache
def _comments(path: Path) -> dict[int, tuple[str, bool]]:
    """Read the comments of a file by line, and whether they have the line to themselves."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    found = [token for token in tokens if token.type == tokenize.COMMENT]
    return {t.start[0]: (t.string.lstrip("# "), not t.line[: t.start[1]].strip()) for t in found}


def _parameters(thing: griffe.Object) -> set[str]:
    return {parameter.name for parameter in getattr(thing, "parameters", [])}


def _below(thing: griffe.Object) -> Iterator[griffe.Object]:
    """Yield `thing` and all that is defined in it."""
    yield thing
    for member in thing.members.values():
        if isinstance(member, griffe.Object):
            yield from _below(member)
