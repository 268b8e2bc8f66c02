"""What `--on` may say, and what it cannot mean."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from engine_tasks import square
from hvae_codec.engine.engine import Here
from hvae_codec.engine.local_processes import available_cores
from hvae_codec.engine.where import (
    OnLocalDask,
    OnProcesses,
    OnScheduler,
    OnSchedulerFile,
    engine_on,
    parse_where,
)
from hvae_codec.errors import UsageError


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("local:1", OnProcesses(1)),
        ("local:1024", OnProcesses(1024)),
        ("local:gpu", OnProcesses(None)),
        ("dask", OnLocalDask(available_cores())),
        ("dask:3", OnLocalDask(3)),
        ("tcp://10.0.0.1:8786", OnScheduler("tcp://10.0.0.1:8786")),
        ("tls://head-node.cluster:8786", OnScheduler("tls://head-node.cluster:8786")),
        ("tcp://[::1]:8786", OnScheduler("tcp://[::1]:8786")),
        ("runs/scheduler.json", OnSchedulerFile(Path("runs/scheduler.json"))),
        ("~/scheduler.json", OnSchedulerFile(Path.home() / "scheduler.json")),
    ],
)
def test_what_on_may_be(text, where):
    assert parse_where(text) == where


@pytest.mark.parametrize(
    "text",
    [
        "",
        "local",
        "local:",
        "local:0",
        "local:1025",
        "local:-1",
        "local:2.5",
        "local:two",
        "dask:0",
        "dask:gpu",
        "tcp://",
        "tcp://host",
        "tcp://host:port",
        "tcp:/host:1",
        "host:8786",
        "http://host:8786",
        "s3://bucket/scheduler.json",
        "scheduler.txt",
        "local:2\n",
        "LOCAL:2",
    ],
)
def test_what_on_cannot_be(text):
    with pytest.raises(UsageError, match="--on is") as refused:
        parse_where(text)
    assert repr(text) in str(refused.value)


def test_nothing_is_this_process():
    with engine_on(None) as engine:
        assert isinstance(engine, Here)


def test_processes_of_this_machine():
    with engine_on("local:1") as engine:
        assert list(engine.map(square, range(3))) == [0, 1, 4]
        assert engine.window == 2


def test_dask_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match=r"distributed.*hvae-codec\[dask\]"), engine_on("dask:2"):
        pass
