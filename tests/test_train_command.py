"""`hvae-codec train` as it is typed: again, changed, damaged, with options; what it says."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest

from hvae_codec.config import config_to_toml, load_config
from hvae_codec_cli.app import main
from photos import save_png

pytestmark = pytest.mark.slow


@pytest.fixture
def work(tmp_path: Path, tiny_config, photo_patches, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with data.npy and tiny.toml (8 steps)."""
    np.save(tmp_path / "data.npy", photo_patches.transpose(0, 2, 3, 1))
    (tmp_path / "tiny.toml").write_text(config_to_toml(tiny_config))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


@pytest.fixture
def train(work: Path, capsys):
    """`train(code, arguments)`: what the command says on standard output and standard error."""

    def call(code: int, arguments: str) -> tuple[str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(["train", "data.npy", *arguments.split()])
        out, errors = capsys.readouterr()
        assert (stopped.value.code or 0) == code, errors
        return out, errors

    return call


def tree(run: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


FIRST = "--config tiny.toml --out runs/a"


@pytest.mark.slow
def test_a_finished_run_says_so_and_stays_as_it_is(train, work: Path):
    out, _ = train(0, FIRST)
    before = tree(work / "runs")
    again, _ = train(0, FIRST)
    assert again.startswith("runs/a was finished")
    assert "--resume --steps N" in again.splitlines()[0]
    assert again.splitlines()[1:] == out.splitlines()
    assert tree(work / "runs") == before
    longer, _ = train(0, "--resume --steps 9")
    assert "runs/a: 9 steps on" in longer


@pytest.mark.slow
def test_the_same_command_goes_on_and_a_damaged_state_is_named(train, work: Path):
    train(0, f"{FIRST} --save-every 3 --steps 8")
    whole = (work / "runs/a/model.safetensors").read_bytes()
    path = work / "runs/a/state/step-000000008.safetensors"
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)
    (work / "runs/a/model.safetensors").write_bytes(content[:100])
    _, errors = train(0, f"{FIRST} --save-every 3 --steps 8")
    relative = path.relative_to(work)
    assert re.search(rf"^hvae-codec: warning: .*{relative} is damaged .* the one before", errors, flags=re.MULTILINE)
    assert (work / "runs/a/model.safetensors").read_bytes() == whole


@pytest.mark.slow
def test_what_may_change_when_a_run_goes_on(train, work: Path):
    train(0, f"{FIRST} --precision fp32")
    _, errors = train(1, f"{FIRST} --precision fp32 --set optimizer.learning_rate=0.5")
    assert "optimizer.learning_rate = 0.02, not 0.5" in errors
    assert "--resume --set optim" in errors
    train(0, "--resume --steps 9 --set optimizer.learning_rate=0.5 --checkpoint-activations")
    config = load_config(work / "runs/a/config.json")
    assert (config.optimizer.learning_rate, config.train.checkpoint_activations, config.train.compile) == (
        0.5,
        True,
        False,
    )
    _, errors = train(1, "--resume --set train.batch_size=4")
    assert "train.batch_size = 8, not 4; give another --out" in errors
    _, errors = train(1, "--resume --seed 4")
    assert "runs/a was begun with seed" in errors
    _, errors = train(1, FIRST)
    assert "runs/a has 9 steps, more than train.steps = 8" in errors


@pytest.mark.slow
def test_options_reach_the_run(train, work: Path):
    train(0, f"{FIRST} --save-every 2 --keep-states 2 --eval-every 3 --log-every 4 --validation-images 1 --workers 2")
    states = sorted(p.stem for p in (work / "runs/a/state").glob("*.json"))
    assert states == ["step-000000006", "step-000000008"]
    tables = {name: (work / f"runs/a/{name}.csv").read_text().splitlines()[1:] for name in ("metrics", "validation")}
    assert [row.split(",")[0] for row in tables["metrics"]] == ["4", "8"]
    assert [row.split(",")[0] for row in tables["validation"]] == ["3", "6", "8"]
    assert all(row.endswith(",1") for row in tables["validation"])
    assert list((work / "runs/a/tensorboard").iterdir())
    train(0, f"{FIRST}b --no-tensorboard")
    assert not (work / "runs/ab/tensorboard").exists()


def test_an_interrupted_run_says_what_to_type(train, work: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            "hvae_codec.train.progress.ProgressReporter.__call__", lambda *_: os.kill(os.getpid(), signal.SIGTERM)
        )
        _, errors = train(128 + signal.SIGTERM, f"{FIRST} --no-tensorboard --save-every 7 --seed 5 --skip-broken")
    (command,) = re.findall(r"^Stopped.* hvae-codec train data\.npy (.*)$", errors, flags=re.MULTILINE)
    assert command == "--resume --out runs/a --save-every 7 --no-tensorboard --skip-broken"
    assert [p.stem for p in (work / "runs/a/state").glob("*1.json")] == ["step-000000001"]
    out, _ = train(0, command)
    assert "runs/a: 8 steps" in out


def test_a_log_file_gets_lines(train):
    out, errors = train(0, FIRST)
    number = r"\d+\.\d{3}"
    status = rf"NELBO {number} = {number} \+ KL {number}, \d/4 groups active"
    images = r"train 21, held out 3 \(a tenth, chosen by a hash of their names\)"
    steps = rf"step 1/8: {status}\nstep 8/8: {status}; [\d,]+ images/s, 0:00:00 left"
    assert re.fullmatch(rf"{images}\nruns/a: from step 0 to 8\n{steps}\n", errors)
    assert out.count("\n") == 2


def test_a_terminal_gets_a_bar(train, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    _, errors = train(0, FIRST)
    assert "groups active" in errors
    assert "8/8" in errors
    assert "step 8/8" not in errors


def test_the_python_of_the_documentation_runs(work: Path, cut_patches, monkeypatch: pytest.MonkeyPatch, capsys):
    for i, patch in enumerate(cut_patches(24, size=32)):
        save_png(work / "data" / f"{i}.png", patch)
    page = (Path(__file__).parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
    code = page.partition("```python\n")[2].partition("```")[0]
    exec(code.replace("train.steps=20", "train.steps=1").replace("% 10", "% 1"), {})
    first, nelbo = capsys.readouterr().out.split("\n")[:2]
    assert first.startswith("1 ")
    assert 0 < float(nelbo) < 10
