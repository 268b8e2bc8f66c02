"""What commands do when a signal ends them, in this process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hvae_codec_cli.app import main
from hvae_codec_cli.display import interruptible


@pytest.fixture(autouse=True)
def _defaults(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    assert all(signal.getsignal(number) is signal.SIG_DFL for number in before)
    for number, handler in before.items():
        signal.signal(number, handler)


def stopped_by(number: signal.Signals, monkeypatch: pytest.MonkeyPatch, advice: str | None = None) -> int:
    def invoke(*_: object) -> None:
        def work() -> None:
            try:
                os.kill(os.getpid(), number)
            finally:
                if number != signal.SIGINT:
                    os.kill(os.getpid(), number)  # again, while it cleans up

        if advice is None:
            work()
        with interruptible(advice):
            work()

    monkeypatch.setattr("typer.core.TyperGroup.invoke", invoke)
    with pytest.raises(SystemExit) as stopped:
        main(["info", "anything"])
    return int(stopped.value.code or 0)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=lambda value: str(value),
)
def test_a_stopped_command_says_so(number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch, capsys):
    assert stopped_by(number, monkeypatch) == code
    assert capsys.readouterr().err == "Stopped.\n"
    assert stopped_by(number, monkeypatch, "Nothing was written.") == code
    assert capsys.readouterr().err == "Stopped. Nothing was written.\n"


@pytest.mark.parametrize("step", ["hvae_codec_cli.app.checked", "typer.core.TyperGroup.make_context"])
def test_a_signal_while_the_command_line_is_read(step: str, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(step, lambda *_, **__: os.kill(os.getpid(), signal.SIGHUP))
    with pytest.raises(SystemExit) as stopped:
        main(["info", "anything"])
    assert stopped.value.code == 129
    assert capsys.readouterr().err == "Stopped.\n"


def test_a_signal_while_python_makes_a_class(tmp_path: Path):
    """Dataclasses `exec` a text; after an interrupt in one, `python -m` would end as by Ctrl-C."""
    (tmp_path / "stopped.py").write_text(
        "from hvae_codec_cli import app\n"
        "app.TyperGroup.make_context = lambda *_, **__: exec('import os; os.kill(os.getpid(), 15)')\n"
        "app.main(['info', 'anything'])\n"
    )
    ended = subprocess.run([sys.executable, "-m", "stopped"], cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (143, "Stopped.\n")


LOST = """
import os, sys, time
from hvae_codec_cli import app

class Deleted:
    def __del__(self):
        os.kill(os.getpid(), int(sys.argv[1]))
        time.sleep(0)  # Python looks for signals

def work(*_, **__):
    Deleted()
    time.sleep(100)

app.TyperGroup.make_context = work
app.main(["info", "anything"])
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=str)
def test_a_signal_while_an_object_is_deleted(number: signal.Signals, code: int):
    """Python ignores what is raised then."""
    command = [sys.executable, "-c", LOST, str(int(number))]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (code, "Stopped.\n")


def test_ctrl_c_while_python_stops():
    """Nothing is left to be done."""
    late = "import atexit, os, sys, hvae_codec_cli.start as start\n"
    late += "atexit.register(os.kill, os.getpid(), 2); sys.argv[1:] = ['--version']; start.main()"
    ended = subprocess.run([sys.executable, "-c", late], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "")
    assert ended.stdout[0].isdigit()
