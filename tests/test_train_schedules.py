from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvae_codec.config import LossConfig, OptimizerConfig
from hvae_codec.train.schedules import kl_weight, learning_rate

STEPS = st.integers(1, 2_000_000)


@pytest.mark.parametrize(
    ("step", "beta"),
    [(1, 1e-4), (21, 1e-4), (22, 1e-4), (121, 100 / 5021), (2521, 2500 / 5021), (5042, 1.0), (9999, 1.0)],
)
def test_linear_kl_weight(step: int, beta: float):
    config = LossConfig(kl_schedule="linear", anneal_start=21, anneal_steps=5000, beta_min=1e-4)
    assert kl_weight(config, step) == pytest.approx(max(beta, 1 / 5021 if step == 22 else 0), rel=1e-12)


def test_logistic_kl_weight():
    config = LossConfig(kl_schedule="logistic", activation_step=10_000, growth_rate=1e-3)
    assert kl_weight(config, 10_000) == 0.5
    assert kl_weight(config, 12_000) == pytest.approx(1 / (1 + math.exp(-2)))
    assert kl_weight(config, 8_000) + kl_weight(config, 12_000) == pytest.approx(1)


def test_a_steep_logistic_schedule_is_a_step():
    config = LossConfig(kl_schedule="logistic", activation_step=10_000, growth_rate=1.0)
    assert kl_weight(config, 1) == pytest.approx(0.0, abs=1e-300)
    assert kl_weight(config, 20_000) == 1.0


@pytest.mark.parametrize(("step", "rate"), [(1, 0.0), (2, 0.05), (4, 0.15), (5, 0.2), (9, 0.2)])
def test_warm_up_from_zero_is_a_step_late(step: int, rate: float):
    config = OptimizerConfig(learning_rate=0.2, warmup_steps=4.0, warmup_from_zero=True, schedule="constant")
    assert learning_rate(config, step) == pytest.approx(rate)
    assert learning_rate(dataclasses.replace(config, warmup_from_zero=False), step) >= rate


def test_constant_kl_weight():
    assert kl_weight(LossConfig(kl_schedule="constant"), 1) == 1.0


@given(STEPS, STEPS, st.sampled_from(["linear", "logistic", "constant"]))
def test_kl_weight_rises_from_0_to_1(a: int, b: int, schedule):
    config = LossConfig(kl_schedule=schedule)
    low, high = (kl_weight(config, step) for step in sorted((a, b)))
    assert 0 < low <= high <= 1


def test_without_annealing_the_kl_weighs_1():
    assert kl_weight(LossConfig(kl_schedule="linear", anneal_start=0, anneal_steps=0), 1) == 1.0


OPTIMIZER = OptimizerConfig(
    learning_rate=1e-3, warmup_steps=100.0, decay_start=1000, decay_steps=2000, min_learning_rate=2e-4
)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (1, 1e-5),
        (50, 5e-4),
        (99, 9.9e-4),
        (100, 1e-3),
        (1000, 1e-3),
        (1500, 2e-4 + 8e-4 * (1 + math.sqrt(0.5)) / 2),
        (2000, 6e-4),
        (3000, 2e-4),
        (10**9, 2e-4),
    ],
)
def test_cosine_rate(step: int, rate: float):
    assert learning_rate(OPTIMIZER, step) == pytest.approx(rate, rel=1e-9)


def test_constant_rate_after_warm_up():
    config = OptimizerConfig(schedule="constant", learning_rate=0.5, warmup_steps=10)
    assert [learning_rate(config, step) for step in (1, 5, 10, 10**6)] == pytest.approx([0.05, 0.25, 0.5, 0.5])


def test_no_warm_up():
    assert learning_rate(OptimizerConfig(warmup_steps=0, decay_start=10), 1) == 1e-3


@given(STEPS)
def test_rates_are_between_0_and_the_highest(step: int):
    assert 0 < learning_rate(OPTIMIZER, step) <= OPTIMIZER.learning_rate
