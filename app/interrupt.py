"""Ctrl-C as a request to stop instead of an exception at an arbitrary line."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def on_interrupt(stop: Callable[[], object]) -> Iterator[None]:
    """While the block runs, the first Ctrl-C calls `stop`; a second one raises KeyboardInterrupt.

    `stop` runs in the main thread between two bytecodes: it may set a flag or put into a SimpleQueue, and
    must take no lock that the block takes.
    """
    previous = signal.getsignal(signal.SIGINT)

    def handle(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop()

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def lasting_interrupt() -> Iterator[None]:
    """Ctrl-C in the block raises KeyboardInterrupt, at the latest when the block ends.

    Needed around the import of torch, some parts of which now and then swallow the exception.
    """
    pressed = False

    def handle(*_: object) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if pressed:
        raise KeyboardInterrupt
