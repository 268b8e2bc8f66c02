"""Every option with values at the ends of what can be typed: it works, or one sentence says why it does not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from hvae_codec.data import sample as sample_data
from hvae_codec_cli.app import app, main
from hvae_codec_cli.source_options import KNOWN_TO_RUN as PREPROCESSING
from photos import save_png

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
ARGUMENTS = {  # what makes a command work; {} is a name that is not taken
    "sample-data": ["{}"],
    "train": ["data", "--preset", "tiny16", "--steps", "1", "--no-tensorboard", "--out", "runs/{}"],
    "analyze-kl": ["data", "--keep", "50%", "--out", "{}"],
    "prune": ["data", "--keep", "50%", "--steps", "1", "--no-tensorboard", "--out", "runs/{}"],
    "encode": ["data", "{}.zarr", "--evaluate", "2"],
    "append": ["more", "a.zarr", "--out", "{}.zarr"],
    "sync": ["data", "a.zarr", "--apply"],
    "decode": ["a.zarr", "{}"],
    "verify": ["a.zarr"],
    "repair": ["a.zarr", "data"],
    "recode": ["a.zarr", "{}.zarr"],
    "sample": ["--n", "2", "--out", "{}.png"],
    "evaluate": ["data", "--split", "all"],
    "bench": ["data", "--split", "all", "--keep", "50%", "--step", "1", "--quality", "50", "--out", "{}"],
    "info": ["a.zarr"],
    "look": ["a.zarr", "--out", "{}.html"],
    "doctor": [],
    "presets": [],
    "import": ["nowhere", "--out", "{}"],
}
EDGES = {
    "int": ["-1", "0", str(2**63), "1.5"],
    "float": ["-1", "nan", "inf", "1e308"],
    "other": ["a\nü", "x" * 300, str(10**30), "nan"],
}
ENDLESS = {("sample", "--n"), ("train", "--steps"), ("prune", "--steps"), ("evaluate", "--samples")}
"""Options of which a large value is meant to take for ever."""


def cases() -> Iterator[tuple[str, str]]:
    for name, command in COMMANDS.items():
        for parameter in command.params:
            if parameter.name in PREPROCESSING and name != "evaluate":
                continue  # the same options of all commands
            if parameter.param_type_name == "option" and not parameter.is_flag:
                yield name, parameter.opts[0]


@pytest.fixture(scope="module")
def folder(tiny_run: Path, photo_patches, tmp_path_factory) -> Iterator[Path]:
    """A folder with two data sets, a run and a store."""
    folder = tmp_path_factory.mktemp("edges")
    for number, pixels in enumerate(photo_patches[:6]):
        image = folder / ("data" if number < 4 else "more") / f"{number}.png"
        save_png(image, pixels)
    shutil.copytree(tiny_run, folder / "runs" / "latest")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert code("encode", "data", "a.zarr", "--keep", "50%", "--evaluate", "none") == 0
    return folder


def code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    return int(ended.value.code or 0)


@pytest.mark.slow
@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.parametrize(("command", "option"), [*cases()])
def test_values_at_the_ends(folder: Path, monkeypatch, capsys, command: str, option: str):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sample_data, "PHOTOGRAPHS", {"coffee": sample_data.PHOTOGRAPHS["coffee"]})
    (parameter,) = (p for p in COMMANDS[command].params if option in p.opts)
    kind = getattr(parameter.bare_type, "__name__", "other")
    for number, value in enumerate(EDGES.get(kind, EDGES["other"])):
        if (command, option) in ENDLESS and len(value) > 10:
            continue
        name = f"{command}{option}-{number}"
        found = code(command, *(word.format(name) for word in ARGUMENTS[command]), f"{option}={value}")
        err = capsys.readouterr().err
        assert found in (0, 1, 2), (value, err)
        if found:
            assert err.splitlines()[-1].startswith("hvae-codec: "), (value, err)
    assert code("verify", "a.zarr") == 0
