"""Where an engine's events go."""

from __future__ import annotations

import logging
from collections.abc import Callable

from .events import Event

log = logging.getLogger(__name__)

Sink = Callable[[Event], None]
"""Called on the engine's thread for each event; it must return at once and raise nothing."""


def guarded(sink: Sink) -> Sink:
    """A sink whose own failure is logged and does not end the engine's thread."""

    def call(event: Event) -> None:
        try:
            sink(event)
        except Exception:
            log.exception("an event sink failed")

    return call
