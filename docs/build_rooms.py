"""Draw docs/images/rooms.png: the package's rooms in layers, after the import contract in pyproject.toml.

A room imports from those below it alone. Purposes are the first sentences of the rooms' docstrings.
"""

from __future__ import annotations

import ast
import re
import textwrap
import tomllib
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import BoxStyle, FancyBboxPatch

ROOT = Path(__file__).parents[1]
PICTURE = Path(__file__).parent / "images" / "rooms.png"
COLOURS = {
    "the command line": "#e9e9ee",
    "uses torch": "#fde8d7",
    "never imports torch, by contract": "#dcebf7",
    "small files without torch": "#f4f6ee",
}
WIDTH, GAP, LEFT = 9.5, 0.12, 0.55
"""In inches; `LEFT` has the arrow."""
NARROW = 1.6
TORCH = re.compile(r"^\s*(?:import|from) torch\b", re.MULTILINE)


class Room(NamedTuple):
    """A folder or a file of the package."""

    name: str
    purpose: str
    lines: int
    kind: str
    """Of `COLOURS`."""


def layers() -> list[list[Room]]:
    """Read the rooms from the highest layer to the lowest; those of one layer do not import each other."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (rooms,) = (contract["layers"] for contract in contracts if "containers" in contract)
    (forbidden,) = (contract["source_modules"] for contract in contracts if contract["type"] == "forbidden")
    without = {module.removeprefix("hvae_codec.") for module in forbidden}
    names = [[name.strip() for name in row.split("|")] for row in rooms if row != "__main__"]
    package = [[read_room(ROOT / "hvae_codec" / name, without) for name in row] for row in names]
    return [[read_room(ROOT / "cli", without)], *package]


def read_room(path: Path, without_torch: set[str]) -> Room:
    """Read the room at `path`, a folder or a file without its ending."""
    files = sorted(path.rglob("*.py")) or [path.with_suffix(".py")]
    texts = {file: file.read_text(encoding="utf-8") for file in files}
    purpose = ast.get_docstring(ast.parse(texts[files[0]])) or ""
    lines = sum(len(text.splitlines()) for text in texts.values())
    return Room(path.name, purpose.split("\n")[0].replace("`", ""), lines, kind_of(path.name, texts, without_torch))


def kind_of(name: str, texts: dict[Path, str], without_torch: set[str]) -> str:
    """Choose one of `COLOURS`."""
    command_line, torch, never, small = COLOURS
    if name == "cli":
        return command_line
    if name in without_torch:
        return never
    return torch if any(map(TORCH.search, texts.values())) else small


def draw(rows: list[list[Room]]) -> Figure:
    """Draw one row per layer, one box per room, and an arrow in the direction of imports."""
    heights = [0.38 + 0.14 * len(rooms) for rooms in rows]  # the narrower, the more lines a purpose takes
    height = sum(heights) + GAP * len(rows)
    figure = Figure(figsize=(WIDTH, height + 0.5), dpi=110)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(-0.4, height + 0.1)
    axes.axis("off")
    bottom = height + GAP
    for rooms, own in zip(rows, heights, strict=True):
        bottom -= own + GAP
        width = (WIDTH - LEFT - 0.1) / len(rooms)
        for i, room in enumerate(rooms):
            draw_room(axes, room, (LEFT + i * width, bottom, width - GAP, own))
    arrow = {"arrowstyle": "-|>", "color": "#555", "linewidth": 1.5}
    axes.annotate("", xy=(0.38, GAP), xytext=(0.38, height), arrowprops=arrow)
    axes.text(0.2, height / 2, "imports go down", rotation=90, va="center", ha="center", fontsize=9, color="#555")
    draw_legend(axes)
    return figure


def draw_room(axes: Axes, room: Room, bounds: tuple[float, float, float, float]) -> None:
    """Draw a box within `bounds` (left, bottom, width, height): the room's name, lines of code and purpose."""
    axes.add_patch(box(*bounds, COLOURS[room.kind]))
    left, bottom, width, height = bounds
    top = bottom + height - 0.09
    narrow = width < NARROW  # the number goes below, as it would stand in the name
    axes.text(left + 0.12, top, room.name, va="top", fontsize=9 if narrow else 10.5, weight="bold")
    lines = (bottom + 0.08, "bottom") if narrow else (top, "top")
    axes.text(left + width - 0.12, lines[0], f"{room.lines:,}", va=lines[1], ha="right", fontsize=9)
    purpose = textwrap.fill(room.purpose, int(width * 14.5), max_lines=3, placeholder=" ...")
    axes.text(left + 0.12, top - 0.21, purpose, va="top", fontsize=7.5, color="#333", linespacing=1.1)


def draw_legend(axes: Axes) -> None:
    """Draw what the colours mean."""
    left = LEFT
    for text, colour in COLOURS.items():
        axes.add_patch(box(left, -0.3, 0.22, 0.15, colour))
        axes.text(left + 0.3, -0.225, text, va="center", fontsize=7.5)
        left += 0.6 + 0.062 * len(text)
    axes.text(WIDTH - 0.25, -0.225, "numbers: lines of code", va="center", ha="right", fontsize=7.5)


def box(left: float, bottom: float, width: float, height: float, colour: str) -> FancyBboxPatch:
    """Make a filled box with round corners."""
    style = BoxStyle.Round(pad=0, rounding_size=0.07)
    return FancyBboxPatch((left, bottom), width, height, boxstyle=style, facecolor=colour, edgecolor="#888")


if __name__ == "__main__":
    draw(layers()).savefig(PICTURE)
