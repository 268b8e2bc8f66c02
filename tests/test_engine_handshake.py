"""Workers of another version, or that cannot do the work, are named before the first task."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine_tasks import complain
from hvae_codec.engine.handshake import check_introductions, introduce
from hvae_codec.errors import EngineError


def test_equal_workers_take_part():
    check_introductions({"worker a": introduce(), "worker b": introduce(lambda: None)})
    assert introduce(complain).problem == "the folder /data is missing"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (replace(introduce(), package="9.9"), r"worker b has version 9\.9 of hvae-codec, this process \d"),
        (replace(introduce(), python="3.99"), r"worker b has Python 3\.99, this process 3\.\d+"),
        (introduce(complain), "worker b cannot take part: the folder /data is missing"),
        (ModuleNotFoundError("No module", name="hvae_codec"), "worker b has no package hvae-codec; install version"),
        (ModuleNotFoundError("No module named 'zarr'", name="zarr"), "worker b cannot take part: .*'zarr'"),
        (OSError("lost"), "worker b cannot take part: OSError: lost"),
    ],
)
def test_the_one_that_differs_is_named(said, words):
    with pytest.raises(EngineError, match=words):
        check_introductions({"worker a": introduce(), "worker b": said})
