from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from hvae_codec.config import Config, config_from_dict, config_to_dict
from hvae_codec.errors import UsageError
from hvae_codec.model.hvae import HVAE
from hvae_codec.presets import load_measured, load_parameter_counts, load_preset, load_reported, preset_names
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
    # name: width, bottom-up cells and latent groups by resolution, in openai/vdvae's enc_blocks and dec_blocks
    "cifar10_vdvae": (384, {32: 12, 16: 7, 8: 7, 4: 4, 1: 3}, {32: 22, 16: 11, 8: 6, 4: 3, 1: 1}, 39_145_700),
    "imagenet32_vdvae": (512, {32: 16, 16: 10, 8: 9, 4: 7, 1: 6}, {32: 41, 16: 20, 8: 10, 4: 5, 1: 2}, 119_280_868),
}


def cell(inputs: int, outputs: int, width: int, kernel: int) -> int:
    """Parameters of a bottleneck cell: 1 × 1, two k × k, 1 × 1."""
    middle = width // 4
    ends = inputs * middle + middle + middle * outputs + outputs
    return ends + 2 * (kernel**2 * middle**2 + middle)


def published_vdvae(width: int, up: dict[int, int], down: dict[int, int]) -> int:
    """Parameters of the published Very Deep VAE, block by block; 16 variates, 100 output channels."""
    count = 3 * 9 * width + width + 2 * width + 100 * width + 100  # input, gain and bias, output
    for resolution, groups in down.items():
        kernel = 3 if resolution > 2 else 1
        count += up[resolution] * cell(width, width, width, kernel) + width * resolution**2
        posterior, prior = cell(2 * width, 32, width, kernel), cell(width, 32 + width, width, kernel)
        count += groups * (posterior + prior + 16 * width + width + cell(width, width, width, kernel))
    return count


@pytest.mark.usefixtures("_no_initialisation")
@pytest.mark.parametrize("name", VDVAE)
def test_vdvae_differs_from_the_published_size_by_what_its_comment_says(name: str):
    width, up, down, published = VDVAE[name]
    assert published_vdvae(width, up, down) == published  # 39M and 119M, says openai/vdvae
    model = load_preset(name).model
    assert {stage.resolution: stage.linked_blocks + stage.extra_bottom_up for stage in model.stages} == up
    assert {stage.resolution: stage.linked_blocks + stage.extra_top_down for stage in model.stages} == down
    projections = len(up) * (width**2 + width)
    middle, groups = width // 4, len(model.groups)
    convolution = width * 32 + 32  # to means and raw scales; the published cells end in them
    prior = (middle + 1) * (2 * width - width - 32) + convolution
    posterior = (middle + 1) * (width - 32) + convolution
    with torch.device("meta"):
        network = HVAE(model)
    own = sum(p.numel() for p in network.parameters())
    assert own == published + projections + groups * (prior + posterior) - 2 * width
    comment = resources.files("hvae_codec.presets").joinpath(f"{name}.toml").read_text(encoding="utf-8")
    assert f"{own / 1e6:.1f} million parameters, {published / 1e6:.1f} million as published" in comment


@pytest.mark.parametrize("name", VDVAE)
def test_vdvae_is_the_column_of_table_3(name: str):
    config = load_preset(name)
    assert config.model.resample == "plain"
    assert len({stage.width for stage in config.model.stages}) == 1
    assert (config.model.posterior_scale, config.model.output_scale) == ("logstd", "logstd")
    assert (config.optimizer.name, config.optimizer.learning_rate) == ("adam", 1e-4)


# --- what others report


def test_reported_figures_belong_to_presets_and_name_their_source():
    reported = load_reported()
    assert set(reported) <= set(preset_names())
    assert {name for name in PUBLISHED if name.endswith("baseline")} <= set(reported)
    for figures in reported.values():
        assert figures.nelbo > 0
        assert figures.source.startswith("README of github.com/")
        assert figures.unit in ("bits/dim", "nats")
    assert [name for name, figures in reported.items() if figures.unit == "nats"] == ["binarized_mnist_baseline"]


def test_figures_of_overlapping_bins_say_so():
    fewer_bits = {name for name in preset_names() if load_preset(name).model.bits < 8}
    noted = {name for name, figures in load_reported().items() if figures.note == "overlapping bins"}
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
    assert "[2]" in rows["cifar10_vdvae"]
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
        figure = f"{reported[name].nelbo:.2f} {reported[name].unit}" if name in reported else "| – | – | – |"
        assert figure in rows[name], name


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
