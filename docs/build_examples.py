"""Writes the programs of docs/examples into their pages and, if a folder is given, what they print there.

    python docs/build_examples.py                   # programs alone
    python docs/build_examples.py quickstart        # runs all in that folder: minutes
    python docs/build_examples.py quickstart flow   # runs one

A page says what goes where: <!-- program NAME.py --> or <!-- output NAME.py ARGUMENTS --> before, <!-- end --> behind.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent / "examples"
PICTURES = {"flow.png": Path(__file__).parent / "images" / "example_flow.png"}
"""What programs draw, and where it is shown from."""


def main() -> None:
    """Write all pages; run what is asked for."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    chosen = sys.argv[2] if len(sys.argv) > 2 else ""
    for page in sorted(EXAMPLES.glob("*.md")):
        text = with_programs(page.read_text(encoding="utf-8"))
        if folder and chosen in text:
            text = with_outputs(text, folder, chosen)
        page.write_text(text, encoding="utf-8")


def with_programs(text: str) -> str:
    """Replace the programs of a page by those in the files."""

    def program(match: re.Match[str]) -> str:
        file = EXAMPLES / match[1]
        language = {".py": "python", ".html": "html"}[file.suffix]
        return f"<!-- program {match[1]} -->\n```{language}\n{file.read_text(encoding='utf-8')}```\n<!-- end -->"

    return re.sub(r"<!-- program (\S+) -->\n.*?<!-- end -->", program, text, flags=re.DOTALL)


def with_outputs(text: str, folder: Path, chosen: str = "") -> str:
    """Run the programs whose outputs a page shows, in `folder`, and replace these."""

    def output(match: re.Match[str]) -> str:
        return ran(match[1], folder) if chosen in match[1] else match[0]

    return re.sub(r"<!-- output (.*?) -->\n.*?<!-- end -->", output, text, flags=re.DOTALL)


def ran(line: str, folder: Path) -> str:
    """Run a program with its arguments: a block with what was typed and printed."""
    name, *arguments = shlex.split(line)
    command = [sys.executable, str((EXAMPLES / name).resolve()), *arguments]
    printed = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True).stdout
    for picture, shown in PICTURES.items():
        if picture in printed:
            shutil.copyfile(folder / picture, shown)
    return f"<!-- output {line} -->\n```console\n$ python {line}\n{printed}```\n<!-- end -->"


if __name__ == "__main__":
    main()
