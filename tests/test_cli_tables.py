"""Tables on narrow terminals, and text on terminals that lack characters."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console
from rich.table import Table

from hvae_codec.report.presets import preset_rows, preset_table, reported_table
from hvae_codec_cli.display import Console as LastingConsole
from hvae_codec_cli.plain_text import never_fail_to_print
from hvae_codec_cli.tables import in_parts

ROWS = [["keep 10%", "413,744", "-0.01566 ± 0.00087", "2,703.9"], ["keep 100%", "4,137,440", "–", "1.0"]]


def figures() -> Table:
    table = Table(title="What it costs", caption="± is the standard error")
    table.add_column("")
    for heading in ("dims", "NELBO change", "times\nthe store"):
        table.add_column(heading, justify="right")
    for row in ROWS:
        table.add_row(*row)
    return table


def shown(tables: list[Table], width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(*tables, sep="\n")
    return out.getvalue()


@pytest.mark.parametrize("width", [34, 40, 48, 200])
def test_every_figure_is_whole_at_any_width(width: int):
    parts = in_parts(figures(), width)
    text = shown(parts, width)
    assert "…" not in text
    assert all(cell in text for row in ROWS for cell in row)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("What it costs") == text.count("± is the standard error") == 1
    assert text.count("keep 100%") == len(parts)
    assert len(parts) == {34: 3, 40: 3, 48: 2, 200: 1}[width]


@pytest.mark.parametrize("width", [24, 80])
def test_no_word_is_cut_at_any_width(width: int):
    table, path = Table(show_header=False), "runs/r/weights/" + "0123456789abcdef" * 5
    table.add_row("weights", path)
    text = shown(in_parts(table, width), width)
    assert path in "".join(text.split()).replace("│", "").replace("weights", "", 1)
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("table", [preset_table, reported_table])
def test_presets_fit_80_columns(table):
    text = shown(in_parts(table(preset_rows()), 80), 80)
    assert "…" not in text
    assert "800,000" in text


def test_text_of_any_kind_is_printed_in_any_encoding(monkeypatch):
    for encoding, expected in (("ascii", "0.1 +/- 0.2, 3 x 4 - ?"), ("latin-1", "0.1 ± 0.2, 3 × 4 - ?")):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
        never_fail_to_print()
        print("0.1 ± 0.2, 3 × 4 – 漢", end="", flush=True)
        assert raw.getvalue().decode(encoding) == expected


def test_a_command_goes_on_if_nobody_reads_what_it_prints():
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", encoding="utf-8") as pipe:
        out = LastingConsole(file=pipe)
        out.print("step 1")
        out.print("step 2")


@pytest.mark.slow
def test_commands_run_where_the_terminal_is_ascii():
    command = [sys.executable, "-m", "hvae_codec", "presets", "--long"]
    done = subprocess.run(command, env={"PYTHONIOENCODING": "ascii"}, capture_output=True, check=True)
    assert b"cifar10_baseline" in done.stdout
    assert done.stdout.isascii()
    assert not done.stderr
