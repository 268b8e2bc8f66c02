from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvae_codec.config import (
    Config,
    GroupShape,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    StageConfig,
    TrainConfig,
    config_from_dict,
    config_to_dict,
    config_to_toml,
    load_config,
    with_settings,
)
from hvae_codec.errors import ConfigError, UsageError

SMALL = st.integers(1, 9)
ODD = st.sampled_from([1, 3, 5])
POSITIVE = st.floats(1e-9, 1e9)


@st.composite
def stage_lists(draw: st.DrawFn) -> tuple[StageConfig, ...]:
    stages, resolution = [], 2 ** draw(st.integers(2, 6))
    while resolution >= 1 and len(stages) < 4:
        linked, variates, extra = draw(SMALL), draw(SMALL), draw(st.integers(0, 3))
        kept = st.tuples(st.integers(1, variates), *[st.integers(0, variates)] * (linked + extra - 1))
        stages.append(
            StageConfig(
                resolution,
                width=draw(st.integers(8, 40)),
                variates=variates,
                kernel=draw(ODD),
                bottleneck=draw(st.sampled_from([0.125, 0.25, 1.0, 1.5])),
                linked_blocks=linked,
                extra_bottom_up=draw(st.integers(0, 3)),
                extra_top_down=extra,
                extra_top_down_after=draw(st.integers(0, linked - 1)),
                kept=draw(st.none() | kept),
            )
        )
        resolution //= draw(st.sampled_from([2, 4]))
        if draw(st.booleans()):
            break
    return tuple(stages)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    stages = draw(stage_lists())
    model = ModelConfig(
        stages[0].resolution,
        stages,
        channels=draw(SMALL),
        bits=draw(st.integers(1, 8)),
        bins=draw(st.sampled_from(["exact", "published"])),
        output_scale=draw(st.sampled_from(["std", "logstd"])),
        posterior_beta=draw(POSITIVE),
        min_output_logscale=draw(st.sampled_from([-250.0, -7.0])),
        residual_distribution=draw(st.booleans()),
        input_kernel=draw(ODD),
        cells_per_block=draw(SMALL),
    )
    optimizer = OptimizerConfig(
        name=draw(st.sampled_from(["adamax", "adam"])),
        learning_rate=draw(POSITIVE),
        skip_threshold=draw(st.none() | POSITIVE),
        clip_norm=draw(st.none() | POSITIVE),
    )
    loss = LossConfig(
        kl_schedule=draw(st.sampled_from(["linear", "logistic", "constant"])), beta_min=draw(st.floats(0, 1))
    )
    return Config(model, optimizer, loss, TrainConfig(steps=draw(SMALL), horizontal_flip=draw(st.booleans())))


@pytest.fixture
def config() -> Config:
    stages = (StageConfig(32, 16, 4, linked_blocks=2), StageConfig(16, 24, 4), StageConfig(4, 24, 4))
    return Config(ModelConfig(32, stages))


# --- round trips


@given(configs())
def test_dict_round_trip(config: Config):
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config


@given(configs())
def test_toml_round_trip(config: Config):
    assert config_from_dict(tomllib.loads(config_to_toml(config))) == config


def test_toml_has_one_line_a_stage(config: Config):
    lines = [line for line in config_to_toml(config).splitlines() if "resolution" in line and "{" in line]
    assert len(lines) == 3
    assert "linked_blocks" in lines[0]
    assert "linked_blocks" not in lines[1]


def test_files(config: Config, tmp_path: Path):
    (tmp_path / "c.toml").write_text(config_to_toml(config), encoding="utf-8")
    (tmp_path / "c.json").write_text(json.dumps(config_to_dict(config)), encoding="utf-8")
    assert load_config(tmp_path / "c.toml") == load_config(tmp_path / "c.json") == config


def test_left_out_sections_take_their_defaults():
    stages = [{"resolution": 8, "width": 8, "variates": 2}]
    config = config_from_dict({"stages": stages, "model": {"resolution": 8}})
    assert config == Config(ModelConfig(8, (StageConfig(8, 8, 2),)))
    assert config.loss == LossConfig()


# --- what is derived


def test_groups_are_in_top_down_order():
    stages = (StageConfig(8, 4, 3, extra_top_down=2), StageConfig(2, 4, 5, linked_blocks=2))
    model = ModelConfig(8, stages)
    assert model.groups == (*[GroupShape(5, 2)] * 2, *[GroupShape(3, 8)] * 3)
    assert model.latent_dims == 2 * 5 * 4 + 3 * 3 * 64
    assert (model.image_size, model.image_dims) == (8, 3 * 64)


def test_a_slim_models_groups_have_the_variates_that_are_left():
    stages = (StageConfig(8, 4, 3, extra_top_down=2, kept=(0, 3, 1)), StageConfig(2, 4, 5, linked_blocks=2))
    model = ModelConfig(8, stages)
    assert [group.variates for group in model.groups] == [5, 5, 0, 3, 1]
    assert (model.latent_dims, model.unpruned_dims) == (2 * 5 * 4 + 4 * 64, 2 * 5 * 4 + 9 * 64)
    assert model.is_slim
    whole = dataclasses.replace(model, stages=(dataclasses.replace(stages[0], kept=None), stages[1]))
    assert (whole.latent_dims, whole.is_slim) == (model.unpruned_dims, False)


def test_each_group_reads_the_skip_of_its_linked_block():
    stages = (StageConfig(8, 4, 3, linked_blocks=2, extra_top_down=2, extra_top_down_after=1), StageConfig(2, 4, 5))
    assert ModelConfig(8, stages).group_skips == (2, 1, 0, 0, 0)


def test_configurations_of_whole_models_are_written_as_before(config: Config):
    """Stores hold them, and hashes of models depend on them."""
    assert all("kept" not in stage for stage in config_to_dict(config)["model"]["stages"])
    assert "kept" not in config_to_toml(config)
    slim = with_settings(config, ["stage32.kept=[0, 2]"])
    assert config_to_dict(slim)["model"]["stages"][0]["kept"] == [0, 2]
    assert "kept = [0, 2]" in config_to_toml(slim)
    assert with_settings(slim, ["stage.kept=none"]) == config


def test_binarised_images_are_28_pixels_wide_at_resolution_32():
    model = ModelConfig(32, (StageConfig(32, 4, 2),), channels=1, output="bernoulli")
    assert (model.padding, model.image_size, model.image_dims) == (2, 28, 784)


# --- what is refused: one sentence that names the key, the value, the remedy


def refused(call, *args) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*args)
    message = str(caught.value)
    assert isinstance(caught.value, UsageError)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"model": {"widht": 3}}, "unknown key model.widht; known: resolution"),
        ({"model": {"chanels": 3}}, "model.chanels; did you mean channels?"),
        ({"optimzer": {}}, "optimzer; did you mean optimizer?"),
        ({"stages": [{"resolution": 8, "width": 8, "variate": 2}]}, "did you mean variates?"),
        ({"train": {"batchsize": 8}}, "train.batchsize; did you mean batch_size?"),
        ({"stages": [{"resolution": 8, "width": 8}]}, "model.stages[0].variates is missing"),
        ({"model": {}}, "model.resolution is missing"),
        ({"model": {"resolution": 8.0}}, "model.resolution is 8.0; "),
        ({"model": {"resolution": True}}, "model.resolution is True; "),
        ({"model": {"resolution": 8, "output_beta": "x"}}, "model.output_beta is 'x'; "),
        ({"model": {"resolution": 8, "stable_init": 1}}, "model.stable_init is 1; "),
        ({"model": {"resolution": 8, "bins": "exakt"}}, "model.bins is 'exakt'; "),
        ({"optimizer": {"clip_norm": "big"}}, "optimizer.clip_norm is 'big'; "),
        ({"stages": 3}, "model.stages is 3;"),
        ({"stages": [3]}, "table of keys"),
        ({"loss": 3}, "loss is 3;"),
        ({"model": 3}, "model is 3;"),
    ],
)
def test_wrong_keys_and_types(data, message):
    whole = {"stages": [{"resolution": 8, "width": 8, "variates": 2}], "model": {"resolution": 8}, **data}
    assert message in refused(config_from_dict, whole)


def test_numbers_without_a_point_are_floats():
    data = {"stages": [{"resolution": 8, "width": 8, "variates": 2, "bottleneck": 1}], "model": {"resolution": 8}}
    bottleneck = config_from_dict(data).model.stages[0].bottleneck
    assert (bottleneck, type(bottleneck)) == (1.0, float)


@pytest.mark.parametrize("text", ["[1]", "3", '"abc"', "null", "{", "[]"])
def test_files_that_hold_no_configuration(text, tmp_path: Path):
    (tmp_path / "c.json").write_text(text)
    assert str(tmp_path / "c.json") in refused(load_config, tmp_path / "c.json")


def test_files_that_cannot_be_read(tmp_path: Path):
    assert "there is no configuration file" in refused(load_config, tmp_path / "c.toml")
    (tmp_path / "c.toml").write_text("model = ")
    assert "c.toml" in refused(load_config, tmp_path / "c.toml")
    (tmp_path / "c.toml").write_bytes(b"\xff\xfe")
    assert "c.toml" in refused(load_config, tmp_path / "c.toml")
    assert str(tmp_path) in refused(load_config, tmp_path)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"bits": 0}, "model.bits is 0;"),
        ({"bits": 9}, "model.bits is 9"),
        ({"stages": ()}, "the model has no stages"),
        ({"channels": 0}, "model.channels is 0;"),
        ({"mixtures": 0}, "model.mixtures is 0"),
        ({"cells_per_block": 0}, "model.cells_per_block is 0"),
        ({"middle_layers": -1}, "model.middle_layers is -1"),
        ({"input_kernel": 2}, "model.input_kernel is 2;"),
        ({"resolution": 16}, "resolution is 8, the model's 16"),
    ],
)
def test_models_that_cannot_be(model, message):
    options = {"resolution": 8, "stages": (StageConfig(8, 8, 2),), **model}
    assert message in refused(lambda: ModelConfig(**options))


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"width": 0}, "resolution 8: width is 0;"),
        ({"variates": 0}, "variates is 0"),
        ({"kernel": 2}, "kernel is 2;"),
        ({"linked_blocks": 0}, "linked_blocks is 0; its state gives the image"),
        ({"linked_blocks": 0, "extra_top_down": 1}, "extra_top_down is 1; without a linked block it must be 0"),
        ({"bottleneck": 0.01}, "bottleneck 0.01 leaves no channel"),
        ({"bottleneck": float("nan")}, "bottleneck"),
        ({"bottleneck": float("inf")}, "bottleneck"),
        ({"extra_top_down": -1}, "extra_top_down is -1"),
        ({"extra_top_down_after": 1}, "extra_top_down_after is 1"),
        ({"kept": (1, 1)}, "kept is [1, 1]; give one number for each of its latent groups, 1 in all"),
        ({"kept": (1,), "extra_top_down": 1}, "kept is [1]; give one number for each of its latent groups, 2 in all"),
        ({"kept": (3,)}, "kept[0] is 3; it must be 0 to 2"),
        ({"kept": (-1,)}, "kept[0] is -1"),
        ({"kept": (0,)}, "keep at least one"),
    ],
)
def test_stages_that_cannot_be(stage, message):
    options = {"resolution": 8, "width": 8, "variates": 2, **stage}
    assert message in refused(lambda: ModelConfig(8, (StageConfig(**options),)))


@pytest.mark.parametrize(
    ("below", "message"),
    [
        (StageConfig(16, 8, 2), "from the highest to the lowest"),
        (StageConfig(3, 8, 2), "not a whole number"),
        (StageConfig(8, 12, 2), "widths 8 and 12 differ"),
    ],
)
def test_neighbours_that_do_not_fit(below, message):
    assert message in refused(lambda: ModelConfig(8, (StageConfig(8, 8, 2), below)))


def test_a_stage_without_latents_must_have_a_block_if_another_one_follows():
    stages = (StageConfig(8, 8, 2), StageConfig(4, 8, 2, linked_blocks=0), StageConfig(2, 8, 2))
    assert "resolution 4: it has no block" in refused(lambda: ModelConfig(8, stages))
    passed = (stages[0], dataclasses.replace(stages[1], extra_bottom_up=1), stages[2])
    model = ModelConfig(8, passed)
    assert [group.resolution for group in model.groups] == [2, 8]
    assert model.top_down_stages == (stages[2], stages[0])
    assert ModelConfig(8, stages[:2]).top_down_stages == stages[:1]  # nothing follows, nothing is missing


def test_plain_resampling_takes_widths_that_grow_on_the_way_down():
    widths = [(8, 8), (8, 12)]
    for above, below in widths:
        ModelConfig(8, (StageConfig(8, above, 2), StageConfig(4, below, 2)), resample="plain")
    again = (StageConfig(8, 8, 2), StageConfig(4, 12, 2), StageConfig(2, 8, 2))
    assert "widths are [8, 12, 8]" in refused(lambda: ModelConfig(8, again, resample="plain"))


def test_the_lowest_latents_need_a_learned_start():
    stages = (StageConfig(8, 8, 2), StageConfig(4, 8, 2))
    ModelConfig(8, stages, largest_start=4)
    message = refused(lambda: ModelConfig(8, stages, largest_start=2))
    assert "largest_start is 2; the lowest latent groups, at 4," in message


def test_weight_decay_is_adamws():
    assert OptimizerConfig(name="adamw", weight_decay=0.01).weight_decay == 0.01
    assert "weight_decay is 0.01; optimizer.name = adam " in refused(
        lambda: OptimizerConfig(name="adam", weight_decay=0.01)
    )


def test_keys_that_came_later_are_written_only_if_they_say_something():
    """Hashes of models, and with them stores and rankings, depend on what is written."""
    plain = ModelConfig(8, (StageConfig(8, 8, 2),))
    later = {"activation": "gelu", "skips": "raw", "heads": "direct", "largest_start": 8, "output_gain": True}
    later |= {"init": "uniform", "input_bits": 3, "input_mean": 9.0, "input_std": 2.0, "open_highest_bin": False}
    assert not later.keys() & config_to_dict(Config(plain))["model"].keys()
    changed = Config(dataclasses.replace(plain, **later))
    assert later.items() <= config_to_dict(changed)["model"].items()
    assert config_from_dict(json.loads(json.dumps(config_to_dict(changed)))) == changed


# --- settings


def test_settings_of_sections_all_stages_and_one(config: Config):
    settings = ["train.batch_size=7", " loss.kl_schedule = logistic", "optimizer.clip_norm=200", "stage.variates=6"]
    changed = with_settings(config, [*settings, "stage16.width=20", "model.bins='published'"])
    assert changed.train.batch_size == 7
    assert changed.loss.kl_schedule == "logistic"
    assert changed.optimizer.clip_norm == 200.0
    assert changed.model.bins == "published"
    assert [stage.variates for stage in changed.model.stages] == [6, 6, 6]
    assert [stage.width for stage in changed.model.stages] == [16, 20, 24]
    back = ["train.batch_size=64", "loss.kl_schedule=linear", "optimizer.clip_norm=none", "stage.variates=4"]
    assert with_settings(changed, [*back, "stage16.width=24", "model.bins=exact"]) == config


def test_later_settings_win(config: Config):
    assert with_settings(config, ["train.steps=1", "train.steps=2"]).train.steps == 2
    assert with_settings(config, []) == config


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.batch_size", "section.key=value"),
        ("batch_size=3", "section.key=value"),
        ("trian.batch_size=3", "'trian'; did you mean train?"),
        ("stage64.width=3", "unknown section 'stage64'"),
        ("train.bach_size=3", "train.bach_size; did you mean batch_size?"),
        ("train.batch_size=", "train.batch_size is ''; "),
        ("train.batch_size=many", "train.batch_size is 'many'; "),
        ("train.batch_size=3.5", "train.batch_size is 3.5"),
        ("stage16.kernel=2", "resolution 16: kernel is 2;"),
        ("stage16.kept=2", "kept is 2; it must be a list"),
        ("stage16.kept=[1.5]", "kept[0] is 1.5; it must be of type int"),
        ("model.stages=3", "model.stages is 3;"),
    ],
)
def test_settings_that_do_not_fit(config: Config, setting: str, message: str):
    assert message in refused(with_settings, config, [setting])


@pytest.mark.parametrize("stages", ["3", "[3]"])
def test_a_stage_setting_after_wrong_stages(config: Config, stages: str):
    message = refused(with_settings, config, [f"model.stages={stages}", "stage.width=8"])
    assert "model.stages" in message


def test_the_given_configuration_is_not_changed(config: Config):
    before = dataclasses.asdict(config)
    with_settings(config, ["stage.width=20", "train.steps=3"])
    assert dataclasses.asdict(config) == before


@pytest.mark.parametrize("setting", ["train.batch_size=0", "train.batch_size=-1"])
def test_batches_hold_at_least_one_image(config: Config, setting: str):
    assert "batch_size" in refused(with_settings, config, [setting])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("ending", [".toml", ".json"])
def test_files_of_windows_editors_are_read(tiny_config, tmp_path, encoding, ending):
    path = tmp_path / f"mine{ending}"
    text = config_to_toml(tiny_config) if ending == ".toml" else json.dumps(config_to_dict(tiny_config))
    path.write_text(text.replace("\n", "\r\n"), encoding=encoding)
    assert load_config(path) == tiny_config


def test_other_encodings_are_named(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[model]\n", encoding="utf-16")
    with pytest.raises(ConfigError, match=r"mine.toml: it is in UTF-16; save it as UTF-8"):
        load_config(path)
    path.write_bytes("# Grösse\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="byte 4 is not UTF-8"):
        load_config(path)
