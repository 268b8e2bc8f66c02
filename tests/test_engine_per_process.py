"""What is made once in each process that runs tasks of a job."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial

import pytest

from engine_tasks import length_times, note_and_give
from hvae_codec.engine.engine import Here
from hvae_codec.engine.per_process import PerProcess
from hvae_codec.engine.where import engine_on
from hvae_codec.errors import ModelError


def elsewhere(value: PerProcess) -> PerProcess:
    """As another process gets it."""
    return pickle.loads(pickle.dumps(value))


@pytest.fixture
def noted(tmp_path) -> Callable[[], list[str]]:
    return lambda: (tmp_path / "made").read_text().split() if (tmp_path / "made").exists() else []


def test_tasks_of_a_job_share_it(tmp_path, noted):
    one, other = (PerProcess(partial(note_and_give, tmp_path / "made", word)) for word in ("one", "other"))
    assert [elsewhere(one).get() for _ in range(3)] == ["one"] * 3
    assert elsewhere(other).get() == "other"
    assert noted() == ["one", "other"]
    assert elsewhere(one).get() == "one"  # of another job meanwhile: that of the last one alone is kept
    assert noted() == ["one", "other", "one"]


def test_what_is_at_hand_does_not_travel(tmp_path, noted):
    value = PerProcess(partial(note_and_give, tmp_path / "made", "there"), lambda: open(__file__))  # noqa: SIM115
    with value.get() as file:
        assert value.get() is file
    assert noted() == []
    assert elsewhere(value).get() == "there"


def test_an_error_is_that_of_each_task():
    def refuse() -> None:
        raise ModelError("there is no run")

    value = PerProcess(refuse)
    for _ in range(2):
        with pytest.raises(ModelError, match="there is no run"):
            value.get()


@pytest.mark.slow
def test_each_process_makes_its_own(tmp_path, noted):
    work = partial(length_times, PerProcess(partial(note_and_give, tmp_path / "made", "made")))
    with engine_on("local:2") as engine:
        assert list(engine.map(work, range(6))) == [0, 4, 8, 12, 16, 20] == list(Here().map(work, range(6)))
    assert 2 <= len(noted()) <= 3
