"""Commands whose work is done by other processes: the same files, byte for byte."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hvae_codec_cli.app import main
from photos import save_png

pytestmark = pytest.mark.slow

Call = Callable[..., tuple[str, str]]


@pytest.fixture
def hvae(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> Call:
    """`hvae(code, arguments)`: what a command says on standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shutil.copytree(tiny_run, "runs/tiny")

    def call(code: int, *arguments: str) -> tuple[str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([*arguments, "--model", "runs/tiny", "--device", "cpu"])
        out, errors = capsys.readouterr()
        assert (stopped.value.code or 0) == code, errors
        return out, errors

    return call


@pytest.fixture
def data(hvae: Call, cut_patches) -> Path:
    """100 training images, one of another size, and 40 held-out ones, in the working folder."""
    for number, patch in enumerate(cut_patches(140)):
        save_png(Path("data", "train" if number < 100 else "val", f"{number:03d}.png"), patch)
    save_png(Path("data", "train", "099.png"), cut_patches(1, 20)[0])
    return Path("data")


def files(folder: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Path(folder).iterdir() if file.is_file()}


def test_analyses_of_two_processes_are_those_of_one(hvae: Call, data: Path, blank_pictures):
    kept = Path("runs/tiny/analysis/kl_stats.npz")
    arguments = ("analyze-kl", "data", "--keep", "10%,100%", "--tolerance", "5%", "--batch-size", "16")
    _, said = hvae(0, *arguments, "--out", "one")
    ranking = kept.read_bytes()
    _, said_of_two = hvae(0, *arguments, "--out", "two", "--overwrite", "--on", "local:2")
    one, two = files("one"), files("two")
    assert {"report.html", "cutoffs.csv", "cutoffs.json"} <= one.keys()
    assert [name for name in one.keys() | two.keys() if one.get(name) != two.get(name)] == []
    assert kept.read_bytes() == ranking
    assert "1 of 140 images of another size" in said
    assert "1 of 140 images of another size" in said_of_two


def test_evaluations_of_two_processes_are_those_of_one(hvae: Call, data: Path):
    arguments = ("evaluate", "data", "--split", "all", "--samples", "2", "--batch-size", "30", "--json")
    one, _ = hvae(0, *arguments, "--csv", "one.csv")
    two, said = hvae(0, *arguments, "--csv", "two.csv", "--on", "local:2")
    assert two == one
    assert Path("two.csv").read_bytes() == Path("one.csv").read_bytes()
    assert "1 of 140 images of another size" in said


@pytest.mark.parametrize("command", ["analyze-kl", "evaluate"])
def test_a_place_that_is_none_is_one_sentence(hvae: Call, data: Path, command: str):
    _, said = hvae(2, command, "data", "--on", "everywhere")
    assert "--on is 'everywhere'; give local:N" in said.splitlines()[-1]


def test_a_worker_has_no_gpu_by_number(hvae: Call, data: Path, tiny_run: Path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "data", "--model", str(tiny_run), "--device", "cuda:1", "--on", "local:2"])
    assert stopped.value.code == 2
    assert "give --device cuda" in capsys.readouterr().err.splitlines()[-1]
