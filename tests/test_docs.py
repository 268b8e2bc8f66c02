"""The documentation is that of these commands and files."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import typer

from hvae_codec_cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
COMMANDS = typer.main.get_command(app).commands


@pytest.mark.slow
def test_the_command_reference_is_up_to_date():
    module = script("build_commands")
    reference = module.reference()
    assert module.PAGE.read_text(encoding="utf-8") == reference, "run make docs"
    for name in COMMANDS:
        assert f"## hvae-codec {name}\n" in reference


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_says_what_it_does(name):
    command = COMMANDS[name]
    assert command.help.strip()
    for parameter in command.params:
        assert (getattr(parameter, "help", "") or "").strip(), f"{name}: {parameter.name} has no help"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_to_files_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(\s*<?([^)>\s]+)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    for target in targets:
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        found = page.parent / path if path else page
        assert found.exists(), f"{page.name} links to {target}"
        if anchor and found.suffix == ".md":
            assert anchor in anchors(found), f"{page.name} links to {target}"


def test_files_that_the_map_of_the_code_names_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:hvae_codec|cli|tests|docs|benchmarks)/[\w./]*)`", text))
    assert len(named) > 20
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_the_picture_of_the_rooms_has_all_layers():
    rooms = {room.name for layer in script("build_rooms").layers() for room in layer}
    files = {
        path.stem for path in (ROOT / "hvae_codec").iterdir() if path.suffix in ("", ".py") and path.stem[0] != "_"
    }
    assert rooms == {"cli", *files}


def script(name: str) -> ModuleType:
    """A script in docs/, imported."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchors(page: Path) -> set[str]:
    """Names of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
