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
try:
    main(sys.argv[1:])
except SystemExit as done:
    assert not done.code, done.code
print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "unneeded"),
    [
        (["--help"], HEAVY | ARRAYS),
        (["--version"], HEAVY | ARRAYS),
        (["encode", "--help"], HEAVY | ARRAYS),
        (["presets"], HEAVY | ARRAYS),
        (["presets", "tiny32"], HEAVY | ARRAYS),
        (["info", STORE], HEAVY),
        (["info", STORE, "--json"], HEAVY),
        (["verify", STORE], HEAVY),
    ],
    ids=lambda value: " ".join(value[:2]).replace(STORE, "STORE") if isinstance(value, list) else "",
)
def test_commands_import_only_what_they_need(command: list[str], unneeded: set[str]):
    done = subprocess.run([sys.executable, "-c", RUN, *command], capture_output=True, text=True, check=True)
    assert not unneeded & set(done.stderr.splitlines()[-1].split())


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
