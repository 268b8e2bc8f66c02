"""The site: what its scripts make of pages and docstrings, and what its link check finds."""

from __future__ import annotations

import importlib
import re
import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import griffe
import pytest

import hvae_codec

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def pages() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "site_pages.py"))


@pytest.fixture(scope="module")
def docstrings() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "site_docstrings.py"))


@pytest.fixture(scope="module")
def problems() -> Any:
    return runpy.run_path(str(DOCS / "check_links.py"))["problems"]


# --- The API pages


def test_every_public_name_is_on_an_api_page_once(docstrings):
    entries = Counter(docstrings["api_entries"]())
    assert [name for name in hvae_codec.__all__ if entries[f"hvae_codec.{name}"] != 1] == []
    assert max(entries.values()) == 1


def test_every_entry_of_an_api_page_is_there(docstrings):
    for entry in docstrings["api_entries"]():
        module, _, name = entry.rpartition(".")
        assert getattr(importlib.import_module(module), name).__doc__, entry


def test_comments_of_fields_become_a_table(docstrings, tmp_path):
    (tmp_path / "kinds.py").write_text(
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Cake:\n"
        '    """A cake."""\n'
        "    size: int  # in cm, 1 | 2\n"
        "    # What is on it;\n"
        "    # nothing by default.\n"
        "    icing: str | None = None\n"
        "    plain: bool = True\n"
        "    _own: int = 0  # not for others\n"
    )
    module = griffe.load(
        "kinds", search_paths=[tmp_path], extensions=griffe.load_extensions(docstrings["ProjectDocstrings"])
    )
    text = module["Cake"].docstring.value
    assert text.startswith("A cake.\n\n| field | |\n")
    assert "| `size` | in cm, 1 \\| 2 |" in text
    assert "| `icing` | What is on it; nothing by default. |" in text
    assert "plain" not in text
    assert "_own" not in text


def test_docstrings_become_markdown(docstrings):
    text = docstrings["markdown"](
        "Bake `Cake`.\n\nsize: in cm,\n    or inches\n\nIt is hot. Raises `StoreError` if\nit is not.\n\n>>> `Cake`\n",
        {"size"},
        {"StoreError": "hvae_codec.errors.StoreError", "Cake": "kinds.Cake"},
    )
    assert "Bake [`Cake`][kinds.Cake]." in text
    assert "\n- `size`: in cm,\n    or inches\n" in text
    assert "It is hot.\n\nRaises [`StoreError`][hvae_codec.errors.StoreError] if\nit is not." in text
    assert "```pycon\n>>> `Cake`\n```" in text


def test_a_line_that_was_ended_early_ends_a_paragraph(docstrings):
    full = "word " * 20 + "and so on."
    assert docstrings["markdown"](f"Short.\n{full}\nMore.", set(), {}) == f"Short.\n\n{full}\nMore."


# --- Links of pages


@pytest.mark.parametrize(
    ("page", "link", "on_the_site"),
    [
        ("clusters.md", "[a](../SECURITY.md#clusters)", "[a](security.md#clusters)"),
        ("api/index.md", "[a](../units.md#units)", "[a](../units.md#units)"),
        ("examples/flow.md", "[a](../../CONTRIBUTING.md)", "[a](../contributing.md)"),
        ("contributing.md", "[a](docs/units.md)", "[a](units.md)"),
        ("security.md", "![a](docs/images/loop.svg)", "![a](images/loop.svg)"),
        ("changelog.md", "[a](README.md)", "[a](index.md)"),
        ("units.md", "[the `Makefile`](../Makefile)", "the `Makefile`"),
        ("units.md", "[a](https://zarr.dev) [b](#units)", "[a](https://zarr.dev) [b](#units)"),
        ("units.md", "`[a](../SECURITY.md)`", "`[a](../SECURITY.md)`"),
        ("units.md", "[a](nowhere.md)", "[a](nowhere.md)"),  # mkdocs says that it is missing
    ],
)
def test_links_lead_to_pages_of_the_site(pages, page, link, on_the_site):
    names = {"index.md", "units.md", "security.md", "contributing.md", "images/loop.svg"}
    assert pages["rewritten"](link, page, names) == on_the_site


# --- The link check


def test_the_link_check_finds_what_leads_nowhere(problems, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.html").write_text(
        '<h1 id="top"></h1><a href="sub/b.html#here"></a><a href="#top"></a><a href="https://zarr.dev"></a>'
        '<a href="c.html"></a><a href="sub/b.html#gone"></a><a href="#nothing"></a><img src="x.png">'
        '<script src="https://example.org/x.js"></script><link rel="stylesheet" href="//example.org/x.css">'
    )
    (tmp_path / "sub" / "b.html").write_text('<p id="here"><a href="../a.html#top"></a><a href="/a.html"></a></p>')
    found = problems(tmp_path)
    assert {re.split(r" (?:links to|loads) ", problem)[1].split()[0].rstrip(":") for problem in found} == {
        "c.html",
        "sub/b.html#gone",
        "#nothing",
        "x.png",
        "https://example.org/x.js",
        "//example.org/x.css",
    }
    assert len(found) == 6


def test_a_site_without_pages_is_no_site(problems, tmp_path):
    assert len(problems(tmp_path)) == 1
