from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hvae_codec.config import Config, LossConfig, ModelConfig, StageConfig
from hvae_codec.model.hvae import Terms
from hvae_codec.train.schedules import StepNumbers
from hvae_codec.train.update import balance, training_loss

# Groups in top-down order: 3 variates at 2 x 2 (12 dimensions), 2 at 4 x 4 (32), the same again.
MODEL = ModelConfig(4, (StageConfig(4, 4, 2, linked_blocks=2), StageConfig(2, 4, 3)), channels=1)
KL = torch.tensor([[12.0, 36.0], [16.0, 16.0], [0.0, 64.0]])
NLL = torch.tensor([100.0, 60.0])
DIMS = 16


def loss_config(**options) -> LossConfig:
    return LossConfig(**{"kl_schedule": "constant", "balance_steps": 10, **options})


def loss_at(step: int, config: LossConfig, kl: torch.Tensor = KL) -> torch.Tensor:
    return training_loss(Terms(NLL, kl), MODEL, config, StepNumbers.at(Config(MODEL, loss=config), step))


def test_by_hand_without_balance():
    loss = loss_at(1, loss_config(balance_groups=False))
    assert loss.item() == pytest.approx((80 + 24 + 16 + 32) / DIMS)


def test_by_hand_with_balance_by_size():
    """KL per latent dimension is 2, 1/2, 1 in the three groups: alpha is 3 times their shares of 3.5."""
    loss = loss_at(10, loss_config())
    alpha = [3 * a / 3.5 for a in (2, 0.5, 1)]
    assert loss.item() == pytest.approx((80 + alpha[0] * 24 + alpha[1] * 16 + alpha[2] * 32) / DIMS)


def test_by_hand_with_balance_by_kl():
    loss = loss_at(10, loss_config(balance_by_size=False))
    assert loss.item() == pytest.approx((80 + 3 / 72 * (24**2 + 16**2 + 32**2)) / DIMS)


def test_balance_ends_after_its_last_step():
    whole = loss_at(11, loss_config())
    assert whole.item() == pytest.approx((80 + 72) / DIMS)


def test_beta_weighs_the_kl():
    config = LossConfig(kl_schedule="linear", anneal_start=10, anneal_steps=90, balance_groups=False)
    assert loss_at(60, config).item() == pytest.approx((80 + 0.5 * 72) / DIMS)


@pytest.mark.parametrize("by_size", [True, False])
@given(kl=st.lists(st.floats(0, 1e6, width=32), min_size=3, max_size=3))
def test_alphas_sum_to_the_number_of_groups(by_size: bool, kl: list[float]):
    alpha = balance(torch.tensor(kl), MODEL, loss_config(balance_by_size=by_size))
    assert alpha.isfinite().all()
    assert (alpha >= 0).all()
    if sum(kl) > 1e-30:
        assert alpha.sum().item() == pytest.approx(3, rel=1e-5)


def test_groups_without_variates_are_not_counted():
    slim = ModelConfig(4, (StageConfig(4, 4, 2, linked_blocks=2, kept=(0, 2)), StageConfig(2, 4, 3)), channels=1)
    for by_size, expected in ((True, [2 / 1.5, 0.0, 1 / 1.5]), (False, [48 / 56, 0.0, 64 / 56])):
        alpha = balance(torch.tensor([12.0, 0.0, 16.0]), slim, loss_config(balance_by_size=by_size))
        assert alpha.tolist() == pytest.approx(expected)


def test_alphas_have_no_gradient():
    kl = KL.clone().requires_grad_()
    loss_at(1, loss_config(), kl).backward()
    alpha = balance(KL.mean(dim=1), MODEL, loss_config())
    torch.testing.assert_close(kl.grad, (alpha / (2 * DIMS))[:, None].expand(3, 2))


def test_collapsed_groups_give_no_nan():
    kl = torch.zeros(3, 2, requires_grad=True)
    loss = loss_at(1, loss_config(), kl)
    loss.backward()
    assert loss.item() == pytest.approx(80 / DIMS)
    assert kl.grad.isfinite().all()
