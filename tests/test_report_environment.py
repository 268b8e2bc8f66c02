"""What `hvae-codec doctor` finds: versions, memory, disk, missing parts."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hvae_codec.report import installed as room
from hvae_codec.report.environment import EXTRAS, environment
from hvae_codec.report.installed import DISTRIBUTION, MODULES
from hvae_codec_cli.app import app


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch):
    """`installed(zarr="3.0.1", pyarrow=None)`: other versions than those that are here; None is not installed."""

    def pretend(**versions: str | None) -> None:
        real = importlib.metadata.version

        def version(name: str) -> str:
            found = versions[name] if name in versions else real(name)
            if found is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return found

        monkeypatch.setattr(room.importlib.metadata, "version", version)

    return pretend


def test_each_extra_of_the_package_has_its_purpose():
    provided = importlib.metadata.metadata(DISTRIBUTION).get_all("Provides-Extra")
    assert {*EXTRAS} == {*provided} - {"dev", "docs"}  # for this project's developers


def test_it_says_what_is_there(tmp_path: Path):
    data = environment(tmp_path).data
    assert data["packages"]["zarr"] == importlib.metadata.version("zarr")
    assert data["faults"] == []
    assert data["disk"]["folder"] == str(tmp_path)
    assert 0 < data["memory"]["available"] <= data["memory"]["total"]
    assert json.loads(json.dumps(data)) == data


def test_a_part_that_is_missing_says_how_to_get_it(installed, tmp_path: Path):
    installed(pyarrow=None)
    parts = {part["name"]: part for part in environment(tmp_path).data["optional"]}
    assert (parts["parquet"]["missing"], parts["parquet"]["remedy"]) == ("pyarrow", "pip install 'hvae-codec[parquet]'")
    assert parts["remote"]["missing"] == ""


def test_a_package_that_is_too_old_is_an_error(installed):
    installed(zarr="3.0.1")
    result = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "200"})
    assert result.exit_code == 1
    assert "zarr>=3.1 is needed, and 3.0.1 is installed; pip install 'zarr>=3.1'" in result.output
    assert CliRunner().invoke(app, ["doctor", "--json"]).exit_code == 1


def test_it_fits_a_screen():
    result = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "100"})
    assert result.exit_code == 0
    assert len(result.output.splitlines()) <= 30


@pytest.mark.parametrize("package", ["torch", "psutil", "packaging", "PIL", "numpy", "zarr", "pandas", "skimage"])
def test_it_says_which_package_cannot_be_imported(package: str, monkeypatch: pytest.MonkeyPatch):
    name = next((name for name, module in MODULES.items() if module == package), package)
    needed = ["typer>=0.1", f"{name}>=0.1", 'pyarrow>=1; extra == "parquet"', 'absent>=1; extra == "remote"']
    monkeypatch.setattr(room.importlib.metadata, "requires", lambda _: needed)
    for part in ("packaging.requirements", "PIL.features"):  # they may have been imported before
        monkeypatch.delitem(sys.modules, part, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 1
    data = json.loads(result.output)
    assert [*data["packages"]] == ["typer", name]
    (fault,) = data["faults"]
    assert f"{name}>=0.1 is needed, and" in fault
    assert f"cannot be imported (ModuleNotFoundError: import of {package}" in fault
    assert f"pip install --force-reinstall '{name}>=0.1'" in fault
    assert [part["missing"] for part in data["optional"] if part["name"] == "remote"] == ["absent"]
    assert (data["memory"] is None, data["threads"] is None) == (package == "psutil", package == "torch")
    assert CliRunner().invoke(app, ["doctor"]).exit_code == result.exit_code


def test_it_works_if_nothing_but_the_command_line_does(tmp_path: Path):
    """Packages are broken as by a shared library that is not there."""
    for package in ("torch", "numpy", "zarr", "PIL", "packaging", "psutil", "pandas", "scipy", "pyarrow", "matplotlib"):
        (tmp_path / f"{package}.py").write_text("raise OSError('libmissing.so.1: cannot open shared object file')")
    done = _run(tmp_path, "doctor")
    assert (done.returncode, done.stderr) == (1, "")
    lines = " ".join(done.stdout.replace("│", " ").split())
    assert "cannot be imported (OSError: libmissing.so.1: cannot open shared object file)" in lines
    assert "pip install --force-reinstall 'torch>=2.6'" in lines
    assert "unknown without torch" in lines


@pytest.mark.parametrize(
    ("package", "command", "remedy"),
    [
        ("torch", ["evaluate", "nowhere"], "hvae-codec doctor"),
        ("typer", ["doctor"], "pip install --force-reinstall hvae-codec"),
    ],
)
def test_a_command_without_its_packages_is_one_sentence(package: str, command: list[str], remedy: str, tmp_path: Path):
    (tmp_path / f"{package}.py").write_text(f"raise ImportError('it is broken', name='{package}')")
    done = _run(tmp_path, *command)
    assert done.returncode == 1
    assert done.stderr.startswith(f"hvae-codec: {package} is missing or broken")
    assert done.stderr.count("\n") == 1
    assert remedy in done.stderr


def _run(broken: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command where the modules in the folder `broken` come before those that are installed."""
    environment = os.environ | {"PYTHONPATH": str(broken), "COLUMNS": "200"}
    words = [sys.executable, "-m", "hvae_codec", *command]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
