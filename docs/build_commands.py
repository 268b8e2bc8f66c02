"""Write docs/commands.md, the command reference, from the commands' own --help."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from hvae_codec_cli.app import app

PAGE = Path(__file__).parent / "commands.md"
WIDTH = 100
INTRODUCTION = """\
# Commands

Made from `--help` by `make docs`.

`hvae-codec --install-completion` lets Tab complete commands and options (bash, zsh, fish, PowerShell), from the next
shell on. `python -m hvae_codec` is the same command, for launchers such as torchrun.
"""


def reference() -> str:
    """The page's text."""
    names = [command.name for command in app.registered_commands if command.name]
    parts = [INTRODUCTION, _section("hvae-codec", [])]
    return "\n".join(parts + [_section(f"hvae-codec {name}", [name]) for name in names])


def _section(title: str, arguments: list[str]) -> str:
    result = CliRunner().invoke(app, [*arguments, "--help"], prog_name="hvae-codec", terminal_width=WIDTH)
    return f"## {title}\n\n```text\n{result.output.strip()}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
