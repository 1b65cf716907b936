"""The terminal's own modes."""

from __future__ import annotations

import contextlib
import sys


def mend() -> None:
    """Have the terminal take and echo lines again, which a program that was killed may have ended.

    To be called before anything remembers the modes that it found. Without a terminal nothing happens.
    """
    try:
        import termios
    except ImportError:  # Windows
        return
    with contextlib.suppress(termios.error, OSError, ValueError):
        modes = termios.tcgetattr(sys.stdin)
        modes[0] |= termios.ICRNL
        modes[1] |= termios.OPOST
        modes[3] |= termios.ECHO | termios.ICANON | termios.ISIG | termios.IEXTEN
        termios.tcsetattr(sys.stdin, termios.TCSANOW, modes)
