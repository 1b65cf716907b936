"""Waits for a call that cannot be interrupted (a look-up on a dead network) so that the wait can be."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from .events import Cancelled

_Result = TypeVar("_Result")


def wait_for(function: Callable[[], _Result], cancel: threading.Event) -> _Result:
    """The result (or exception) of `function()`, run in a thread of its own.

    Raises Cancelled within a moment of `cancel`; the thread is then left to end by itself.
    """
    results: list[_Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        if cancel.is_set():
            raise Cancelled
        thread.join(0.1)
    if errors:
        raise errors[0]
    return results[0]
