"""Commands that need no model start without the libraries that only models need."""

from __future__ import annotations

import errno
import io
import subprocess
import sys
from pathlib import Path

import pytest

from hvae_codec_cli.app import main

STORE = str(Path(__file__).parent / "golden" / "stores" / "variate-int.zarr")
HEAVY = {"torch", "matplotlib", "plotly", "sklearn", "scipy", "pandas", "skimage", "tensorboard", "jinja2"}
ARRAYS = {"numpy", "zarr", "PIL"}
RUN = """
import sys
from hvae_codec_cli.app import main
for command in sys.argv[1:]:
    try:
        main(command.split())
    except SystemExit as done:
        assert not done.code, done.code
    print("imported", *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("commands", "unneeded"),
    [
        (["--help", "--version", "encode --help", "presets", "presets tiny32"], HEAVY | ARRAYS),
        ([f"info {STORE}", f"info {STORE} --json", f"verify {STORE}"], HEAVY),
    ],
    ids=["words", "stores"],
)
def test_commands_import_only_what_they_need(commands: list[str], unneeded: set[str]):
    """One after the other in one process: what a command imports is still there after the next one."""
    done = subprocess.run([sys.executable, "-c", RUN, *commands], capture_output=True, text=True, check=True)
    imported = [set(line.split()) for line in done.stderr.splitlines() if line.startswith("imported ")]
    assert {command: modules & unneeded for command, modules in zip(commands, imported, strict=True)} == {
        command: set() for command in commands
    }


def test_the_package_is_run_as_a_module():
    done = subprocess.run([sys.executable, "-m", "hvae_codec", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout[0].isdigit()


def test_shell_completion_knows_the_commands(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("_HVAE_CODEC_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "hvae-codec anal")
    monkeypatch.setenv("COMP_CWORD", "1")
    done = subprocess.run([sys.executable, "-m", "hvae_codec"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["analyze-kl"]


class FullDisk(io.StringIO):
    """A file that takes no character."""

    def write(self, text: str) -> int:
        """Fail as a full disk does."""
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("words", [["--help"], [], ["presets", "tiny16"]])
def test_help_onto_a_full_disk_is_one_sentence(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(sys, "stdout", FullDisk())
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith("hvae-codec: no space left")
