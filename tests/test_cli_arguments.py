"""What is typed: empty values, URLs, ~, values that cannot be read, and help."""

from __future__ import annotations

from pathlib import Path

import pytest

from hvae_codec.errors import UsageError
from hvae_codec_cli.app import main
from hvae_codec_cli.arguments import checked


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    return int(ended.value.code or 0), *capsys.readouterr()


def test_alone_it_prints_its_help(capsys):
    code, out, err = run(capsys)
    assert (code, err) == (0, "")
    assert out == run(capsys, "--help")[1] == run(capsys, "-h")[1]
    assert len(out.splitlines()) > 15


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (["encode", "data", "out.zarr", "--keep", ""], "after --keep"),
        (["encode", "data", "out.zarr", "--keep="], "--keep="),
        (["train", ""], "after train"),
        (["append", "data", "a.zarr", "--out", ""], "after --out"),
        ([""], "after hvae-codec"),
    ],
)
def test_empty_values_are_refused(capsys, arguments: list[str], where: str):
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert f"an empty value ({where})" in err


def test_home_is_found_behind_an_equals_sign(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    words = ["train", "--out=~/runs/a", "--set", "a=b", "x~y", "--config=a~b"]
    assert checked(words) == ["train", "--out=/home/ada/runs/a", *words[2:]]
    with pytest.raises(UsageError):
        checked(["--out="])


@pytest.mark.parametrize(
    ("arguments", "url"),
    [
        (["encode", "data", "out.zarr", "--mask", "s3://bucket/mask.json"], "s3://bucket/mask.json"),
        (["evaluate", "data", "--csv", "gs://bucket/a.csv"], "gs://bucket/a.csv"),
        (["evaluate", "data", "--model", "https://example.org/run"], "https://example.org/run"),
        (["analyze-kl", "data", "--mask", "a.json", "--mask", "s3://b/c.json"], "s3://b/c.json"),
    ],
)
def test_urls_are_refused_if_only_a_path_can_be(capsys, tmp_path: Path, monkeypatch, arguments: list[str], url: str):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert f"{url} is a URL" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate", "data", "--batch-size=0"], ["--batch-size is 0", "greater than or equal to 1"]),
        (["train", "data", "--steps", "many"], ["--steps is many", "valid integer"]),
        (["encode", "data", "out.zarr", "--codec", "zip"], ["--codec", "'zip'", "int", "float16", "encode --help"]),
        (["encode", "data", "out.zarr", "--codec", "float16", "--code-bits", "8"], ["--code-bits", "8", "float16"]),
        (["encode", "data", "out.zarr", "--code-bits", "12"], ["--code-bits", "'12'", "'16'"]),
        (["encode", "data"], ["Missing argument 'store'", "encode --help"]),
        (["encod"], ["encod", "hvae-codec --help"]),
        (["encode", "data", "out.zarr", "--color"], ["--color", "--colour", "encode --help"]),
        (["encode", "data", "out.zarr", "--keep", "3"], ["keep is 3", "3%"]),
        (["encode", "data", "out.zarr", "--keep", "3,5%"], ["keep is 3", "3%"]),
        (["encode", "data", "out.zarr", "--tolerance", "1"], ["the tolerance is 1", "1%"]),
    ],
)
def test_what_is_wrong_is_said_with_the_value(capsys, arguments: list[str], words: list[str]):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "Value error" not in err
    for word in words:
        assert word in err
