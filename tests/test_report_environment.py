"""What `hvae-codec doctor` finds: versions, memory, disk, missing parts."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hvae_codec.report import environment as room
from hvae_codec.report.environment import DISTRIBUTION, EXTRAS, environment
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
    assert {*EXTRAS} == {*provided} - {"dev"}


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
