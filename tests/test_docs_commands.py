"""The commands that pages show: their options exist, and those that take a moment print what the page says.

A page shows commands as `$ hvae-codec ...` in blocks of ```console, what they print below them, `...` for what is left
out or differs, and other ones in blocks of code of any kind.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

from hvae_codec import LatentMask, encode_images, kl_stats, load_model, open_images
from hvae_codec_cli.app import app
from photos import save_png

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
OPTIONS = {
    name: {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for name, command in typer.main.get_command(app).commands.items()
}
QUICK = ("presets", "--version")
"""What needs no data, and so runs anywhere; any command does that ends with an error about its arguments."""

ELSEWHERE = ("s3://", "gs://", "two.zarr", "was begun with")
"""In commands or errors of a place that is not the quickstart's: a bucket, a damaged store, a run with a past."""


class Shown(NamedTuple):
    """A command as a page shows it."""

    page: str
    line: str
    printed: str  # what the page shows below it


def code(page: Path) -> Iterator[str]:
    """Blocks of code, fenced or indented, with folded lines joined."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^( *)```\w*[^\n]*\n(.*?)^\1```", text, flags=re.DOTALL | re.MULTILINE)
    indented = re.findall(
        r"(?:^    .*\n)+", re.sub(r"^( *)```.*?^\1```", "", text, flags=re.DOTALL | re.MULTILINE), re.M
    )
    for block in [block for _, block in fenced] + indented:
        yield re.sub(r"\n\s+--", " --", block.replace("\\\n", " "))


def typed(block: str) -> Iterator[list[str]]:
    """Words of each call of hvae-codec that begins a line of a block, or is a list in YAML."""
    for words in re.findall(r"\[hvae-codec, ([^\]]*)\]", block):
        yield words.replace(",", "").split()
    calls = r"(?:^|[ $\"])(?:hvae-codec|-m hvae_codec) ([a-z][a-z-]*(?: .*)?)$"
    for line in re.findall(calls, block, flags=re.MULTILINE):
        yield re.split(r"(?:^| )(?:#|&|>|\|)|[\"'`]\)?(?: |$)", line)[0].split()


def written() -> list[tuple[str, list[str]]]:
    """Each call on any page: the page's name, and the words."""
    found = [(page.name, words) for page in PAGES for block in code(page) for words in typed(block)]
    return [(page, words) for page, words in found if words and words[0] in OPTIONS]


def shown() -> Iterator[Shown]:
    """Commands in console blocks that have something printed below them."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"^```console\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
            for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                line, _, printed = part.replace("\\\n", " ").partition("\n")
                if printed.strip():
                    yield Shown(page.name, line, printed)


def can_be_run(command: Shown) -> bool:
    """Whether it is this package's, takes a moment, and needs nothing but a place like the quickstart's."""
    words = command.line.split()
    if words[0] != "hvae-codec" or any(word in command.line + command.printed for word in ELSEWHERE):
        return False
    return words[1] in QUICK or command.printed.startswith("hvae-codec: ")


RUN = [command for command in shown() if can_be_run(command)]


def test_pages_show_commands():
    assert len(written()) > 60
    assert len(RUN) >= 3
    assert {words[0] for _, words in written()} >= {
        "train",
        "analyze-kl",
        "encode",
        "decode",
        "verify",
        "prune",
        "info",
    }


@pytest.mark.parametrize("page", sorted({page for page, _ in written()}))
def test_commands_have_these_options(page):
    for _, words in (call for call in written() if call[0] == page):
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert options <= OPTIONS[words[0]], f"{page}: hvae-codec {' '.join(words)}"


def test_what_is_looked_for_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "```console\n$ hvae-codec encode a b --keep 3%  # all\nx\n```\n\n    hvae-codec decode a b --format npy\n"
    )
    assert [words for block in code(page) for words in typed(block)] == [
        ["encode", "a", "b", "--keep", "3%"],
        ["decode", "a", "b", "--format", "npy"],
    ]
    assert matches("a\n...\nd 1.5 s", "a\nb\nc\nd 1.5 s")
    assert matches("took ... s", "took 3 s")
    assert not matches("a\nd", "a\nb\nd")


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_run, cut_patches) -> Path:
    """A folder like the quickstart's: data/, runs/photos, which runs/latest is, out.zarr, and images/ of it."""
    place = tmp_path_factory.mktemp("quickstart")
    for i, image in enumerate(cut_patches(20)):
        save_png(place / "data" / ("val" if i % 5 == 0 else "train") / "photo" / f"{i:02d}.png", image)
    save_png(place / "images" / "0.png", image)
    shutil.copytree(tiny_run, place / "runs" / "photos")
    (place / "runs" / "latest").symlink_to("photos")
    model, images = load_model(place / "runs" / "photos"), open_images(place / "data", size=16, channels=3)
    stats = kl_stats(model, images)
    encode_images(model, images, place / "out.zarr", mask=LatentMask.from_keep(stats, 0.5), stats=stats)
    return place


@pytest.mark.slow
@pytest.mark.parametrize("command", RUN, ids=lambda command: f"{command.page}: {command.line}")
def test_commands_print_what_the_page_shows(command, place):
    words = [sys.executable, "-m", "hvae_codec", *shlex.split(command.line)[1:]]
    width = max(map(len, command.printed.splitlines()))
    environment = os.environ | {"COLUMNS": str(max(width, 150)), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, timeout=120, check=False)
    printed = ended.stdout + ended.stderr
    assert matches(command.printed, printed), f"{command.page} shows\n{command.printed}\nand this is\n{printed}"
    assert (ended.returncode != 0) == command.printed.startswith("hvae-codec: ")


def matches(page: str, printed: str) -> bool:
    """Whether `printed` is what the page shows, where `...` stands for anything, and ends of lines do not count."""
    wanted, found = ("\n".join(line.rstrip() for line in text.strip().splitlines()) for text in (page, printed))
    return re.fullmatch(".*".join(map(re.escape, wanted.split("..."))), found, flags=re.DOTALL) is not None
