"""`hvae-codec prune` as it is typed, and the other commands on the run that it writes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from hvae_codec import open_store
from hvae_codec.config import config_to_toml
from hvae_codec_cli.app import main

pytestmark = pytest.mark.slow

FAST = "--steps 4 --batch-size 8 --no-tensorboard"


def run(arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(arguments.split())
    return int(stopped.value.code or 0)


@pytest.fixture(scope="module")
def origin(tmp_path_factory, tiny_config, photo_patches) -> Path:
    """A folder with data.npy, runs/a (8 steps) and runs/p, pruned from it to 20% with codes."""
    folder = tmp_path_factory.mktemp("prune")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        np.save("data.npy", photo_patches.transpose(0, 2, 3, 1))
        Path("tiny.toml").write_text(config_to_toml(tiny_config))
        assert run("train data.npy --config tiny.toml --out runs/a --no-tensorboard") == 0
        assert run(f"prune data.npy --keep 20% --codes --out runs/p {FAST}") == 0
    return folder


@pytest.fixture
def hvae(origin: Path, tmp_path: Path, monkeypatch, capsys, blank_pictures):
    """`hvae(code, arguments)`: standard output and standard error, in a copy of `origin`."""
    shutil.copytree(origin, tmp_path / "work", symlinks=True)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("COLUMNS", "160")

    def call(code: int, arguments: str) -> tuple[str, str]:
        capsys.readouterr()
        found = run(arguments)
        out, errors = capsys.readouterr()
        assert found == code, errors
        assert "Traceback" not in errors
        return out, errors

    return call


def test_the_four_commands_go_on_with_the_unpruned_run(hvae):
    assert Path("runs/latest").resolve().name == "a"
    hvae(0, "encode data.npy out.zarr --keep 50%")
    assert open_store("out.zarr").run == "runs/a"


def test_a_pruned_run_encodes_all_that_is_left_and_decodes(hvae):
    out, _ = hvae(0, "encode data.npy out.zarr --model runs/p --split all")
    kept = json.loads(hvae(0, "info out.zarr --json")[0])["kept_dims"]
    facts = json.loads(hvae(0, "info runs/p --json")[0])
    assert kept == facts["latent_dims"] < 0.2 * facts["unpruned_dims"]
    assert f"Kept {kept:,} of {facts['unpruned_dims']:,} latent dimensions" in out
    hvae(0, "decode out.zarr images")
    assert len(list(Path("images").rglob("*.png"))) == 24
    assert "int, learned steps " in hvae(0, "info out.zarr")[0]
    _, errors = hvae(2, "encode data.npy other.zarr --model runs/p --keep 50%")
    assert "keep is 50%, and runs/p was pruned to 20%" in errors
    assert "as --model: runs/a" in errors
    assert not Path("other.zarr").exists()


def test_the_other_commands_know_what_is_left(hvae):
    out, _ = hvae(0, "analyze-kl data.npy --model runs/p --pictures 4")
    assert "all that is left" in out
    assert "keep 100%" not in out
    page = Path("runs/p/analysis/report.html").read_text()
    assert page.count("Before and after pruning") == page.count('id="plot-nelbo"') == 1
    out, _ = hvae(0, "evaluate data.npy --model runs/p --samples 2")
    assert "NELBO" in out
    hvae(0, "sample --model runs/p --n 4")
    out, _ = hvae(0, "info runs/p")
    assert "to keep 20% of runs/a" in out
    assert "trained for codes" in out


def test_a_further_cut_is_a_part_and_training_goes_on(hvae):
    hvae(0, "encode data.npy out.zarr --model runs/p --keep 5%")
    out, _ = hvae(0, "train data.npy --resume --out runs/p --steps 6 --no-tensorboard")
    assert "runs/p: 6 steps on" in out
    out, _ = hvae(0, "prune data.npy --model runs/p --keep 5% --codes --out runs/q --steps 2 --batch-size 8")
    assert "runs/q" in out
    assert "before and after at learned steps" in out
    assert "at a step of 1" not in out
    note = "before at a step of 1, after at learned steps"
    assert note in Path("runs/p/analysis/report.html").read_text()


def test_the_table_has_before_and_after_and_a_control(hvae):
    out, _ = hvae(0, f"prune data.npy --keep 30% --model runs/a --control --out runs/c {FAST}")
    for word in ("before", "control", "after", "change: from the control with all latents"):
        assert word in out
    assert "PSNR, SSIM and bytes are at a step of 1" in out
    rows = json.loads(Path("runs/c/analysis/pruning.json").read_text())["rows"]
    assert [row["model"] for row in rows] == ["before", "before", "control", "control", "after"]


WRONG = [
    ("", "give --keep, such as --keep 1%"),
    ("--keep 0%", "keep is 0%"),
    ("--keep 100% --out x", "keeps all latent dimensions"),
    ("--keep 20% --schedule 30%,20%", "leave out --keep"),
    ("--schedule 20%,x", "keep is 'x'"),
    ("--keep 20% --share 0%", "the share is 0%"),
    ("--keep 20% --codes --collapse sample", "leave out --collapse sample"),
    ("--keep 20% --no-slim", "give --collapse sample"),
    ("--keep 20% --set model.bits=5", "optimizer, loss and train alone"),
    ("--keep 20% --mask tiny.toml", "give one of --keep"),
    ("--mask tiny.toml --out x", "the mask is no JSON"),
    ("--keep 30% --codes --model runs/p --out x", "runs/p was pruned to 20%"),
    ("--keep 5% --model runs/p --out x", "give --codes"),
    ("--keep 20% --model nowhere", "no run at nowhere"),
    ("--keep 10% --out runs/p", "runs/p was begun with"),
    ("--keep 20% --out tiny.toml", "exists and is a file"),
]


def test_bad_input_is_one_sentence_and_leaves_nothing(hvae, capsys):
    before = sorted(Path().rglob("*"))
    for arguments, sentence in WRONG:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(["prune", "data.npy", *arguments.split()])
        errors = capsys.readouterr().err.splitlines()
        assert sentence in errors[-1], (arguments, errors)
        assert errors[-1].startswith("hvae-codec: ")
        assert stopped.value.code in (1, 2)
        left = [path for path in Path().rglob("*") if path not in before]
        assert not [path for path in left if not path.is_relative_to("runs/a")], arguments  # the ranking stays


def test_masks_of_another_run_are_refused(hvae):
    hvae(0, "analyze-kl data.npy --model runs/p --pictures 4 --keep 10%")
    _, errors = hvae(2, "prune data.npy --model runs/a --mask runs/p/analysis/masks/keep-10.json --out x")
    assert "keep-10.json: the mask was made for another model" in errors


def typed(folder: Path, arguments: list[str]) -> None:
    """Run a command as a process of its own; its errors go to a file."""
    os.chdir(folder)
    os.dup2(os.open("errors.txt", os.O_CREAT | os.O_WRONLY), 2)
    main(arguments)


def test_a_stopped_one_says_how_to_continue(hvae, processes):
    command = ["prune", "data.npy", "--keep", "20%", "--out", "runs/s"]
    command += ["--steps", "100000", "--batch-size", "8", "--no-tensorboard", "--log-every", "1"]
    process = processes.Process(target=typed, args=(Path.cwd(), command))
    process.start()
    metrics, end = Path("runs/s/metrics.csv"), time.monotonic() + 120
    while time.monotonic() < end and not (metrics.exists() and metrics.read_text().count("\n") > 2):
        time.sleep(0.05)
    process.terminate()
    process.join(60)
    errors = Path("errors.txt").read_text()
    assert process.exitcode == 128 + signal.SIGTERM, errors
    assert "The same command continues where it stopped." in errors
    assert "Traceback" not in errors
    assert list(Path("runs/s/state").glob("step-*.json"))
