from __future__ import annotations

import signal

import pytest

from hvae_codec.train.interrupt import Interruptible


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_remembered_and_handlers_come_back(number: signal.Signals):
    before = signal.getsignal(number)
    with Interruptible() as interrupt:
        assert not interrupt.requested
        signal.raise_signal(number)
        assert interrupt.requested
        signal.raise_signal(signal.SIGTERM)  # as launchers send after another
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_does_not_wait():
    def hurry() -> None:
        with Interruptible():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        hurry()
