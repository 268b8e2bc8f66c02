from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from hvae_codec.config import Config, config_from_dict, config_to_dict
from hvae_codec.errors import UsageError
from hvae_codec.model.hvae import HVAE
from hvae_codec.presets import load_measured, load_parameter_counts, load_preset, load_reported, preset_names
from hvae_codec.published.vdvae_config import config_of
from hvae_codec.published.vdvae_hparams import VdvaeHparams
from hvae_codec.report.about import count_parameters
from hvae_codec_cli.app import main

PUBLISHED = json.loads((Path(__file__).parent / "golden" / "presets.json").read_text())


def test_all_twenty_published_presets_are_there():
    assert len(PUBLISHED) == 20
    assert set(PUBLISHED) < set(preset_names())


@pytest.fixture
def _no_initialisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are only counted; setting them takes most of the time."""
    for rule in ("kaiming_uniform_", "xavier_uniform_", "uniform_", "zeros_"):
        monkeypatch.setattr(torch.nn.init, rule, lambda tensor, *_, **__: tensor)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_presets_have_the_published_size(name: str):
    model = load_preset(name).model
    assert len(model.groups) == PUBLISHED[name]["stochastic_layers"]
    assert model.latent_dims == PUBLISHED[name]["latent_dims"]
    assert load_parameter_counts()[name] == PUBLISHED[name]["parameters"]


@pytest.mark.slow
@pytest.mark.usefixtures("_no_initialisation")
def test_the_stored_sizes_are_those_of_the_models():
    counted = {name: count_parameters(load_preset(name)) for name in preset_names()}
    assert load_parameter_counts() == counted


def test_every_preset_loads_and_goes_round():
    for name in preset_names():
        config = load_preset(name)
        assert isinstance(config, Config)
        assert config_from_dict(config_to_dict(config)) == config


def test_presets_report_exact_bins():
    assert {load_preset(name).model.bins for name in preset_names()} == {"exact"}


@pytest.mark.parametrize(
    ("name", "images"), [("tiny32", (32, 3, 8)), ("tiny16", (16, 3, 8)), ("digits8", (8, 1, 5))], ids=str
)
def test_presets_for_a_cpu_are_small(name: str, images: tuple[int, int, int]):
    config = load_preset(name)
    model = config.model
    assert (model.resolution, model.channels, model.bits) == images
    assert sum(p.numel() for p in HVAE(model).parameters()) < 1_000_000
    assert config.train.steps <= 2000


def test_digits8_keeps_the_17_values_apart_and_does_not_mirror():
    config = load_preset("digits8")
    images = (load_digits().images * 255 / 16).round().astype("uint8")
    assert images.shape[1:] == (config.model.resolution, config.model.resolution)
    values = np.unique(images)
    kept = values >> (8 - config.model.bits)
    assert len(values) == len(np.unique(kept)) == 17
    assert len(np.unique(values >> (9 - config.model.bits))) < 17  # one bit fewer would not do
    assert not config.train.horizontal_flip


# --- Very Deep VAE


VDVAE = {
    # name: what the published program is started with, GPUs; blocks of both paths, latent dimensions, parameters
    "cifar10_vdvae": (
        {
            "dataset": "cifar10",
            "width": 384,
            "lr": 0.0002,
            "n_batch": 16,
            "ema_rate": 0.9999,
            "dec_blocks": "1x1,4m1,4x2,8m4,8x5,16m8,16x10,32m16,32x21",
            "enc_blocks": "32x11,32d2,16x6,16d2,8x6,8d2,4x3,4d4,1x3",
        },
        2,
        (33, 43, 412_432, 39_145_700),
    ),
    "imagenet32_vdvae": (
        {
            "dataset": "imagenet32",
            "n_batch": 8,
            "skip_threshold": 300.0,
            "dec_blocks": "1x2,4m1,4x4,8m4,8x9,16m8,16x19,32m16,32x40",
            "enc_blocks": "32x15,32d2,16x9,16d2,8x8,8d2,4x6,4d4,1x6",
        },
        32,
        (48, 78, 765_216, 119_280_868),
    ),
    "imagenet64_vdvae": (
        {
            "dataset": "imagenet64",
            "n_batch": 4,
            "grad_clip": 220.0,
            "skip_threshold": 380.0,
            "dec_blocks": "1x2,4m1,4x3,8m4,8x7,16m8,16x15,32m16,32x31,64m32,64x12",
            "enc_blocks": "64x11,64d2,32x20,32d2,16x9,16d2,8x8,8d2,4x7,4d4,1x5",
        },
        32,
        (65, 75, 1_451_040, 125_005_860),
    ),
    "ffhq256_vdvae": (
        {
            "dataset": "ffhq_256",
            "n_batch": 1,
            "grad_clip": 130.0,
            "skip_threshold": 180.0,
            "dec_blocks": "1x2,4m1,4x3,8m4,8x4,16m8,16x9,32m16,32x21,64m32,64x13,128m64,128x7,256m128",
            "enc_blocks": "256x3,256d2,128x8,128d2,64x12,64d2,32x17,32d2,16x7,16d2,8x5,8d2,4x5,4d4,1x4",
        },
        32,
        (68, 66, 4_470_816, 114_874_852),
    ),
    "ffhq1024_vdvae": (
        {
            "dataset": "ffhq_1024",
            "width": 16,
            "num_mixtures": 2,
            "lr": 0.00007,
            "n_batch": 1,
            "grad_clip": 360.0,
            "skip_threshold": 500.0,
            "dec_blocks": "1x2,4m1,4x3,8m4,8x4,16m8,16x9,32m16,32x20,64m32,64x14,128m64,128x7,256m128,256x2,512m256,"
            "1024m512",
            "enc_blocks": "1024x1,1024d2,512x3,512d2,256x5,256d2,128x7,128d2,64x10,64d2,32x14,32d2,16x7,16d2,8x5,8d2,"
            "4x5,4d4,1x4",
            "custom_width_str": "512:32,256:64,128:512,64:512,32:512,16:512,8:512,4:512,1:512",
        },
        32,
        (70, 70, 27_588_640, 109_366_904),
    ),
}


@pytest.mark.parametrize("name", VDVAE)
def test_vdvae_presets_are_the_published_networks_and_training(name: str):
    given, gpus, (_, groups, latent_dims, parameters) = VDVAE[name]
    published = config_of(VdvaeHparams(wd=0.01, warmup_iters=100.0, **given), gpus=gpus)
    preset = load_preset(name)
    steps = preset.train.steps
    assert preset == dataclasses.replace(published, train=dataclasses.replace(published.train, steps=steps))
    assert 650_000 <= steps <= 1_700_000
    assert (len(preset.model.groups), preset.model.latent_dims) == (groups, latent_dims)
    assert load_parameter_counts()[name] == parameters


@pytest.mark.usefixtures("_no_initialisation")
@pytest.mark.parametrize("name", VDVAE)
def test_vdvae_presets_have_the_published_size(name: str):
    _, _, (blocks, _, _, parameters) = VDVAE[name]
    with torch.device("meta"):
        network = HVAE(load_preset(name).model)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert sum(len(block.cells) for block in network.bottom_up.blocks) == blocks


# --- what others report


def test_reported_figures_belong_to_presets_and_name_their_source():
    reported = load_reported()
    assert set(reported) <= set(preset_names())
    assert {name for name in PUBLISHED if name.endswith("baseline")} <= set(reported)
    for figures in reported.values():
        assert figures.nelbo > 0
        for source in (figures.source, figures.time_source or figures.source, figures.memory_source or figures.source):
            assert source.startswith(("README of github.com/", "Table 3 of arXiv 2203.13751"))
        assert figures.unit in ("bits/dim", "nats")
    assert [name for name, figures in reported.items() if figures.unit == "nats"] == ["binarized_mnist_baseline"]


TABLE_3 = {  # NELBO in bits/dim, hours, GB
    "cifar10_C1": ("2.91", "99", "8"),
    "cifar10_baseline": ("2.87", "108", "17"),
    "imagenet32_C1": ("3.60", "161", "26"),
    "imagenet32_baseline": ("3.58", "177", "76"),
    "imagenet64_C1": ("3.33", "184", "29"),
    "imagenet64_baseline": ("3.30", "202", "116"),
    "ffhq256_5bits_C1": ("0.61", "226", "101"),
    "ffhq256_5bits_baseline": ("0.60", "245", "304"),
}


def test_training_costs_what_table_3_says():
    reported = load_reported()
    for name, (nelbo, hours, memory) in TABLE_3.items():
        figures = reported[name]
        assert (figures.time, figures.memory) == (f"{hours} h", f"{memory} GB")
        assert f"{figures.nelbo:.2f}" == nelbo or f"{nelbo} bits/dim" in figures.note  # the README's model is another


def test_latent_groups_by_resolution_are_those_of_table_6():
    rows = {
        "cifar10_C1": [3, 4, 7, 11, 22],
        "cifar10_vdvae": [1, 3, 6, 11, 22],
        "imagenet32_C1": [6, 7, 19, 25, 16],
        "imagenet32_vdvae": [2, 5, 10, 20, 41],
        "imagenet64_C1": [6, 7, 19, 25, 16, 11],
        "imagenet64_vdvae": [2, 4, 8, 16, 32, 13],
        "ffhq256_vdvae": [2, 4, 5, 10, 22, 14, 8, 1],
        "ffhq256_5bits_C1": [2, 4, 5, 10, 22, 14, 8, 1],
    }
    for name, layers in rows.items():
        counted = Counter(group.resolution for group in load_preset(name).model.groups)
        assert [counted[resolution] for resolution in sorted(counted)] == layers, name


def test_figures_of_overlapping_bins_say_so():
    fewer_bits = {name for name in preset_names() if load_preset(name).model.bits < 8}
    noted = {name for name, figures in load_reported().items() if "overlapping bins" in figures.note}
    assert noted == fewer_bits & set(load_reported())


def test_the_long_table_gives_figures_with_their_source(monkeypatch, capsys):
    monkeypatch.setattr(
        "hvae_codec.report.presets.preset_names", lambda: ["cifar10_baseline", "cifar10_vdvae", "tiny16"]
    )
    with pytest.raises(SystemExit):
        main(["presets", "--long"])
    lines = capsys.readouterr().out.splitlines()
    rows = {
        name: next(line for line in lines if name in line) for name in ("cifar10_baseline", "cifar10_vdvae", "tiny16")
    }
    assert "2.87 bits/dim" in rows["cifar10_baseline"]
    assert "[1]" in rows["cifar10_baseline"]
    assert "108 h [3]" in rows["cifar10_baseline"]
    assert "[2]" in rows["cifar10_vdvae"]
    assert "32 GB [3]" in rows["cifar10_vdvae"]
    assert "bits/dim" not in rows["tiny16"]
    text = "\n".join(lines)
    assert all(f"github.com/{repository}" in text for repository in ("Rayhane-mamah/Efficient-VDVAE", "openai/vdvae"))
    with pytest.raises(SystemExit):
        main(["presets", "--json"])
    data = {row["name"]: row["reported"] for row in json.loads(capsys.readouterr().out)}
    assert data["tiny16"] is None
    assert data["cifar10_vdvae"]["gpus"] == "2"
    with pytest.raises(SystemExit) as caught:
        main(["presets", "tiny16", "--long"])
    assert caught.value.code == 2


def test_the_documentation_has_every_preset_and_figure():
    text = (Path(__file__).parents[1] / "docs" / "published.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    reported = load_reported()
    for name in preset_names():
        figures = reported.get(name)
        texts = (
            (f"{figures.nelbo:.2f} {figures.unit}", figures.time, figures.memory) if figures else ("| – | – | – | – |",)
        )
        assert all(text in rows[name] for text in texts), name


# --- what steps took here


def test_measured_steps_are_those_of_the_documentation():
    text = (Path(__file__).parents[1] / "docs" / "gpu.md").read_text(encoding="utf-8").replace("*", "")
    preset, rows = "", {}
    for line in text.splitlines():
        if line.count("|") == 8 and ("fp32" in line or "bf16" in line):
            step, batch, ms, _, _, _, peak = (cell.strip() for cell in line.strip("|").split("|"))
            named = re.findall(r"`(\w+)`", step)
            preset = named[0] if named else preset
            rows[preset, step.partition("recorded")[0][-6:-2], int(batch), step[-8:]] = (float(ms), peak)
    measured = load_measured()
    assert set(measured) == {"cifar10_C1", "tiny32"}
    for name, steps in measured.items():
        for step in steps:
            found = rows[name, step.precision, step.batch_size, "recorded"]
            assert found == (step.ms, f"{step.peak_mib:,}"), (name, step)


def test_the_long_table_ends_with_what_steps_took(monkeypatch, capsys):
    monkeypatch.setattr("hvae_codec.report.presets.preset_names", lambda: ["cifar10_C1", "tiny16"])
    with pytest.raises(SystemExit):
        main(["presets", "--long"])
    last = capsys.readouterr().out.partition("Measured by this project")[2].splitlines()
    (row,) = (line for line in last if " 32 " in line and "bf16" in line)
    assert all(figure in row for figure in ("cifar10_C1", "80.5", "12.42", "2,160", "H100", "docs/gpu.md"))
    assert not any("tiny16" in line for line in last)
    with pytest.raises(SystemExit):
        main(["presets", "--json"])
    data = {row["name"]: row["measured"] for row in json.loads(capsys.readouterr().out)}
    assert data["tiny16"] == []
    first = data["cifar10_C1"][0]
    assert (first["batch_size"], first["precision"], first["ms"], first["peak_mib"]) == (16, "fp32", 54.6, 1745)


@pytest.mark.parametrize("name", ["reported", "measured", "parameters"])
def test_files_beside_the_presets_are_none(name: str):
    assert name not in preset_names()
    with pytest.raises(UsageError, match=f"unknown preset '{name}'"):
        load_preset(name)


def test_a_misspelt_preset_names_the_nearest():
    with pytest.raises(UsageError, match=r"unknown preset 'cifar10_basline'; did you mean cifar10_baseline\?"):
        load_preset("cifar10_basline")
