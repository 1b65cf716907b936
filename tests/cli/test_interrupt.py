"""Ctrl-C as a request, and Ctrl-C that is not swallowed."""

from __future__ import annotations

import contextlib
import signal

import pytest

from lite_llama.app.interrupt import lasting_interrupt, on_interrupt


@pytest.fixture(autouse=True)
def handler_is_put_back():
    before = signal.getsignal(signal.SIGINT)
    yield
    assert signal.getsignal(signal.SIGINT) is before


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def test_the_first_asks_and_the_second_interrupts():
    calls = []
    with on_interrupt(lambda: calls.append("stop")):
        press_ctrl_c()
        assert calls == ["stop"]
        with pytest.raises(KeyboardInterrupt):
            press_ctrl_c()
    assert calls == ["stop"]


def swallow_ctrl_c(after: list[str]) -> None:
    with lasting_interrupt():
        with contextlib.suppress(KeyboardInterrupt):
            press_ctrl_c()
        after.append("swallowed")


def test_a_swallowed_interrupt_comes_back():
    after: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        swallow_ctrl_c(after)
    assert after == ["swallowed"]


def test_without_ctrl_c_nothing_is_raised():
    with lasting_interrupt():
        pass
