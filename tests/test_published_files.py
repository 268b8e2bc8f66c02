"""Files that are no published checkpoint or log, or of another family, are told in one sentence what they are."""

from __future__ import annotations

import argparse
import io
import json
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hvae_codec.errors import HvaeCodecError, ModelError, UsageError
from hvae_codec.published.families import read_checkpoint
from hvae_codec.published.import_checkpoint import ImportOptions, import_checkpoint
from hvae_codec.published.record import ImportRecord, read_record, save_record
from hvae_codec.published.vdvae_hparams import VdvaeHparams
from hvae_codec.published.vdvae_log import log_beside, read_vdvae_log

SYMMETRIC = Path(__file__).parent / "golden" / "symmetric" / "checkpoints-symmetric"

VDVAE_NAMES = ("encoder.in_conv.weight", "encoder.enc_blocks.0.c1.weight", "decoder.gain", "decoder.bias_xs.0")


def refused(call: Callable, *args: object, **options: object) -> str:
    with pytest.raises(HvaeCodecError) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    return str(caught.value)


def saved(content: object, *, zipped: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def state(*names: str) -> dict[str, torch.Tensor]:
    return OrderedDict((name, torch.ones(4000)) for name in names)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "imagenet32-iter-1700000-model-ema.th"


# --- what was downloaded


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html><head><title>404</title>", "a web page"),
        (b'\xef\xbb\xbf<?xml version="1.0"?><Error><Code>BlobNotFound</Code></Error>', "a web page"),
        (b"\n <HTML>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 477123456\n", "Git LFS pointer"),
    ],
)
def test_what_came_in_place_of_a_file(path: Path, content: bytes, what: str):
    path.write_bytes(content)
    for read, wanted in ((read_checkpoint, "checkpoint"), (read_vdvae_log, "log")):
        message = refused(read, path)
        assert what in message
        assert f"not a {wanted}; download the file itself" in message
        assert str(path) in message


def test_a_folder_and_nothing(tmp_path: Path):
    assert "is a folder" in refused(read_checkpoint, tmp_path)
    assert "is a folder" in refused(read_vdvae_log, tmp_path)
    assert "there is no checkpoint" in refused(read_checkpoint, tmp_path / "x")
    assert "there is no log" in refused(read_vdvae_log, tmp_path / "x")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
def test_half_a_download(path: Path, zipped: bool, share: float):
    whole = saved(state(*VDVAE_NAMES), zipped=zipped)
    path.write_bytes(whole[: int(share * len(whole))])
    message = refused(read_checkpoint, path)
    assert f"ends too early, after {int(share * len(whole)):,} bytes" in message
    assert "download it again" in message


@pytest.mark.parametrize("content", [b"some text\n", b"\0" * 999, b'{"time": 1}\n', b"\x80\x02]."])
def test_no_file_of_torch(path: Path, content: bytes):
    path.write_bytes(content)
    assert refused(read_checkpoint, path).startswith((f"cannot read the checkpoint {path}", f"{path} is not a publish"))


def test_another_zip_archive(path: Path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "x")
    assert "a zip archive" in refused(read_checkpoint, path)


class Trap:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [saved, lambda content: saved(content, zipped=False), pickle.dumps])
def test_code_does_not_run(path: Path, write: Callable[..., bytes]):
    path.write_bytes(write({**state(*VDVAE_NAMES), "decoder.x": Trap(path.with_name("ran"))}))
    assert str(path) in refused(read_checkpoint, path)
    assert not path.with_name("ran").exists()


# --- families


@pytest.mark.parametrize("zipped", [True, False])
def test_families_are_known_by_their_names(path: Path, zipped: bool):
    for names in (VDVAE_NAMES, [f"module.{name}" for name in VDVAE_NAMES], ["decoder.dec_blocks.3.resnet.c1.bias"]):
        path.write_bytes(saved(state(*names), zipped=zipped))
        assert read_checkpoint(path)[0] == "VDVAE"
    assert read_checkpoint(SYMMETRIC)[0] == "Efficient-VDVAE"


def test_other_families_are_named(path: Path):
    nvae = state("prior_ftr0", "stem.weight_normalized", "enc_tower.0._ops.0.bn.weight", "dec_sampler.0.1.weight")
    qres = state("encoder.enc_blocks.0.weight", "decoder.bias", "decoder.dec_blocks.0.resnet_front.conv_dw.weight")
    qarv = state("bias", "encoder.enc_blocks.1.gamma", "dec_blocks.0.resnet_end.gamma", "lmb_embedding.0.weight")
    for content, name in (
        ({"epoch": 400, "state_dict": nvae, "args": argparse.Namespace(dataset="cifar10")}, "an NVAE checkpoint"),
        ({"epoch": 400, "state_dict": nvae}, "an NVAE checkpoint"),
        ({"model": qres}, "a QRes-VAE or QARV checkpoint"),
        ({"model": qarv}, "a QRes-VAE or QARV checkpoint"),
    ):
        for zipped in (True, False):
            path.write_bytes(saved(content, zipped=zipped))
            message = refused(read_checkpoint, path)
            assert f"{path} is {name}" in message
            assert "only VDVAE and Efficient-VDVAE can be imported" in message


def test_an_optimiser_file(path: Path):
    moments = {"step": 3, "exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)}
    path.write_bytes(saved({"state": {0: moments}, "param_groups": [{"lr": 0.1, "params": [0]}]}))
    message = refused(read_checkpoint, path)
    assert "optimiser" in message
    assert "-model-ema.th" in message


@pytest.mark.parametrize("content", [[1, 2], {}, {"resnet.weight": torch.ones(1)}, torch.ones(3), {3: 4}])
def test_something_else(path: Path, content: object):
    path.write_bytes(saved(content))
    assert "is not a published checkpoint" in refused(read_checkpoint, path)


# --- what is given with a checkpoint


def test_hyper_parameters_must_come_from_somewhere(path: Path):
    path.write_bytes(saved(state(*VDVAE_NAMES)))
    message = refused(import_checkpoint, path, ImportOptions())
    assert "--log" in message
    assert "--preset imagenet32_vdvae" in message
    other = path.rename(path.with_name("mine.th"))
    assert "--preset one of cifar10_vdvae, " in refused(import_checkpoint, other, ImportOptions())
    with pytest.raises(UsageError, match=r"--preset cifar10_C1 is no published VDVAE; known: cifar10_vdvae"):
        import_checkpoint(other, ImportOptions(preset="cifar10_C1"))


def test_options_of_another_family(path: Path):
    path.write_bytes(saved(state(*VDVAE_NAMES)))
    for checkpoint, options, message in (
        (SYMMETRIC, ImportOptions(), "is an Efficient-VDVAE checkpoint; give its .cfg file with --config"),
        (SYMMETRIC, ImportOptions(config=path, log=path), "neither --log nor --preset"),
        (path, ImportOptions(config=path), "is a VDVAE checkpoint, which has no .cfg file"),
        (path, ImportOptions(log=path, preset="cifar10_vdvae"), "--log and --preset both"),
        (path, ImportOptions(weights="raw"), "has only the averaged weights"),
    ):
        with pytest.raises(UsageError):
            import_checkpoint(checkpoint, options)
        assert message in refused(import_checkpoint, checkpoint, options)


# --- logs

VALUES = {
    "dataset": "ffhq_256",
    "enc_blocks": "8x1,8d2,4x2",
    "dec_blocks": "4x1,8m4",
    "width": 12,
    "custom_width_str": "4:16",
    "zdim": 5,
    "bottleneck_multiple": 0.5,
    "no_bias_above": 2,
    "num_mixtures": 2,
    "lr": 0.0003,
    "wd": 0.01,
    "adam_beta1": 0.9,
    "adam_beta2": 0.8,
    "warmup_iters": 100.0,
    "grad_clip": 130.0,
    "skip_threshold": -1,
    "ema_rate": 0.999,
    "n_batch": 4,
    "mpi_size": 32,
}


def lines(values: dict[str, object]) -> list[str]:
    return [json.dumps({"type": "hparam", "key": key, "value": value}) for key, value in sorted(values.items())]


@pytest.fixture
def log(tmp_path: Path) -> Callable[..., Path]:
    def write(*content: str) -> Path:
        file = tmp_path / "imagenet32-iter-1700000-log.jsonl"
        file.write_text("\n".join(content) + "\n", encoding="utf-8")
        return file

    return write


def test_a_log_gives_the_last_value_of_each_hyper_parameter(log):
    first = lines(VALUES | {"lr": 7.0, "n_batch": 8, "desc": "x", "epochs_per_probe": None})
    steps = ['{"type": "train_loss", "step": 1000, "elbo": NaN, "grad_norm": Infinity}', "", '{"message": "resumed"}']
    read = read_vdvae_log(log("\ufeff" + first[0], *first[1:], *steps, *lines(VALUES)))  # saved by an editor on Windows
    assert read.gpus == 32
    assert read.hparams == VdvaeHparams(**{key: value for key, value in VALUES.items() if key != "mpi_size"})


def test_whole_numbers_may_have_a_point(log):
    read = read_vdvae_log(log(*lines(VALUES | {"width": 12.0, "grad_clip": 130}))).hparams
    assert (read.width, read.grad_clip) == (12, 130.0)
    assert (type(read.width), type(read.grad_clip)) == (int, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wd": math.nan}, "the hyper-parameter wd is nan; it must be a finite number"),
        ({"lr": math.inf}, "lr is inf"),
        ({"width": math.nan}, "width is nan; it must be a whole number"),
        ({"width": 12.5}, "width is 12.5"),
        ({"zdim": True}, "zdim is True"),
        ({"zdim": None}, "zdim is None"),
        ({"n_batch": 10**400}, "n_batch is 1000"),
        ({"dec_blocks": 3}, "dec_blocks is 3; it must be a text"),
        ({"dataset": "lsun"}, "dataset is 'lsun'; it must be one of cifar10, imagenet32, imagenet64, ffhq_256"),
        ({"dataset": ["cifar10"]}, "dataset is"),
        ({"mpi_size": 0}, "mpi_size is 0"),
    ],
)
def test_values_that_cannot_be(log, change: dict[str, object], message: str):
    found = refused(read_vdvae_log, log(*lines(VALUES | change)))
    assert message in found
    assert "-log.jsonl" in found


@pytest.mark.parametrize("key", VALUES)
def test_absent_keys_are_named(log, key: str):
    rest = {name: value for name, value in VALUES.items() if name != key}
    assert f"lacks the hyper-parameter {key}; " in refused(read_vdvae_log, log(*lines(rest)))


def test_files_that_are_no_log(log, path: Path):
    assert "no line with a hyper-parameter" in refused(read_vdvae_log, log('{"message": "training"}'))
    assert "line 2 is no JSON object" in refused(read_vdvae_log, log("", "name = 3"))
    assert "line 1 is no JSON object" in refused(read_vdvae_log, log("[" * 100_000))
    torn = lines(VALUES)
    assert f"line {len(torn)} is no JSON" in refused(read_vdvae_log, log(*torn[:-1], torn[-1][:-9]))
    path.write_bytes(saved(state(*VDVAE_NAMES)))
    assert "no JSON object" in refused(read_vdvae_log, path)


def test_the_log_that_lies_beside(log, path: Path):
    assert log_beside(path) is None
    found = log("{}")
    assert log_beside(path) == log_beside(path.with_name("imagenet32-iter-1700000-model.th")) == found
    assert log_beside(path.with_name("imagenet32-iter-1700000-opt.th")) is None


# --- what stays of it in the run


def test_the_record_comes_back(tmp_path: Path):
    assert read_record(tmp_path) is None
    record = ImportRecord(
        family="VDVAE", file="a.th", bytes=3, sha256="0" * 64, weights="raw", step=None, hyperparameters="a.jsonl"
    )
    save_record(tmp_path, record)
    assert read_record(tmp_path) == record
    (tmp_path / "imported.json").write_text('{"family": "VDVAE"}')
    with pytest.raises(ModelError, match=r"imported.json .* import the run again"):
        read_record(tmp_path)
