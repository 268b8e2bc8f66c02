"""torch's switches of precision: whatever a user set, full float32 inside and the user's settings after."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from hvae_codec.model.hvae import HVAE
from hvae_codec.model.precision import full_float32, same_algorithms

NEW = hasattr(torch.backends.cudnn, "conv")
"""Whether torch has one switch a backend (since 2.9)."""

SETTINGS = [
    "pass",
    "torch.set_float32_matmul_precision('high')",
    "torch.backends.cudnn.allow_tf32 = False",
    "torch.backends.cuda.matmul.allow_tf32 = True",
    "torch.backends.cudnn.benchmark = True",
    "torch.backends.cudnn.deterministic = True",
]
NEW_SETTINGS = [
    "torch.backends.fp32_precision = 'tf32'",
    "torch.backends.fp32_precision = 'ieee'",
    "torch.backends.cudnn.fp32_precision = 'tf32'",
    "torch.backends.cudnn.fp32_precision = 'ieee'",
    "torch.backends.cudnn.conv.fp32_precision = 'tf32'",
    "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "torch.backends.fp32_precision = torch.backends.cudnn.fp32_precision = 'ieee'",
]
PROGRAM = """
import os, sys, torch
from hvae_codec.model.precision import full_float32

cudnn, matmul, new = torch.backends.cudnn, torch.backends.cuda.matmul, hasattr(torch.backends.cudnn, "conv")

def settings():
    precisions = (cudnn.conv, cudnn.rnn, cudnn, matmul) if new else ()
    found = [backend.fp32_precision for backend in precisions] or [cudnn.allow_tf32, matmul.allow_tf32]
    return found, cudnn.benchmark, cudnn.deterministic

def whole():
    precise = (cudnn.conv.fp32_precision, matmul.fp32_precision) == ("ieee", "ieee") if new else not (
        cudnn.allow_tf32 or matmul.allow_tf32
    )
    return precise and (cudnn.benchmark, cudnn.deterministic) == (False, True)

def check(setting):
    exec(setting)
    before = settings()
    for _ in range(2):
        with full_float32():
            assert whole()
            with full_float32():
                assert whole()
            assert whole()
        assert settings() == before, (settings(), before)
    if "cudnn.fp32_precision" in setting:  # convolutions still inherit it
        for value in ("ieee", "tf32"):
            cudnn.fp32_precision = value
            assert cudnn.conv.fp32_precision == value

for setting in sys.argv[1:]:
    if os.fork() == 0:
        check(setting)
        os._exit(0)
    assert os.wait()[1] == 0, setting
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="each setting needs a process that has seen no other")
def test_float32_is_whole_inside_and_the_users_settings_stay():
    """DistributedContext of their own: torch refuses to go from its older switches to the newer ones and back."""
    program = [sys.executable, "-W", "ignore", "-c", PROGRAM, *SETTINGS, *NEW_SETTINGS * NEW]
    ended = subprocess.run(program, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_settings_come_back_after_an_error():
    before = torch.backends.cudnn.deterministic
    with pytest.raises(ValueError, match="inside"), full_float32():
        raise ValueError("inside")
    assert torch.backends.cudnn.deterministic == before


@pytest.mark.parametrize("wanted", [True, False])
def test_algorithms_are_the_same_only_where_wanted(wanted: bool):
    cudnn = torch.backends.cudnn
    with same_algorithms(wanted):
        assert cudnn.deterministic == wanted
    assert not cudnn.deterministic


@pytest.mark.parametrize("method", ["reconstruct", "sample", "activations", "elbo"])
def test_the_models_results_are_in_full_float32(tiny_model: HVAE, photo_patches, monkeypatch, method: str):
    seen = []
    path = tiny_model.top_down if method == "sample" else tiny_model.bottom_up
    handle = path.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.deterministic))
    getattr(tiny_model, method)(2 if method == "sample" else torch.from_numpy(photo_patches[:2]))
    handle.remove()
    assert seen == [True]


def test_training_computes_as_the_user_set_it(tiny_model: HVAE, photo_patches):
    seen = []
    handle = tiny_model.bottom_up.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.deterministic))
    tiny_model(torch.from_numpy(photo_patches[:2]), lambda group: torch.zeros_like(group.prior.mean))
    handle.remove()
    assert seen == [False]
