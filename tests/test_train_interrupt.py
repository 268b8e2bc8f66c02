from __future__ import annotations

import signal

import pytest

from hvae_codec.train.interrupt import Interruptible


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_remembered_and_handlers_come_back(number: signal.Signals):
    before = signal.getsignal(number)
    with Interruptible() as interrupt:
        assert not interrupt.requested
        signal.raise_signal(number)
        assert (interrupt.requested, interrupt.signal) == (True, number)
        signal.raise_signal(signal.SIGTERM)  # as launchers send after another
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_does_not_wait():
    def hurry() -> None:
        with Interruptible():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        hurry()


def test_what_is_ignored_stays_ignored():
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruptible() as interrupt:
            signal.raise_signal(signal.SIGHUP)
        assert not interrupt.requested
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
