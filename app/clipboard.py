"""The system's clipboard, for terminals that do not let programs write to it themselves (OSC 52)."""

from __future__ import annotations

import contextlib


def copy(text: str) -> None:
    """Put `text` there if this machine has a clipboard; over SSH it mostly has none. May take a moment."""
    import pyperclip

    with contextlib.suppress(pyperclip.PyperclipException, OSError):
        pyperclip.copy(text)
