"""What we ask of the terminal and tell it: whether it is dark or light, and its modes after a crash."""

from __future__ import annotations

import contextlib
import os
import re
import select
import sys
import termios
import time
import tty
from collections.abc import Mapping
from enum import Enum
from typing import Any, cast

ANSWER_WITHIN_S = 0.3
NOTIFY_ON, NOTIFY_OFF = "\x1b[?2031h", "\x1b[?2031l"
"""Have the terminal tell when it turns dark or light (contour's mode, also kitty's, ghostty's and tmux's)."""
# Every terminal answers the second question, so that one that does not know the first need not be waited for.
_QUESTION = b"\x1b]11;?\x1b\\\x1b[c"
_ANSWERED = re.compile(rb"\x1b\[\?[\d;]*c")
_BACKGROUND = re.compile(rb"\x1b\]11;rgba?:([0-9a-fA-F]+)/([0-9a-fA-F]+)/([0-9a-fA-F]+)")


class Told(Enum):
    """What the terminal tells, as Textual takes it in: as if it were a key."""

    DARK = "terminal-is-dark"
    LIGHT = "terminal-is-light"


def understand_notifications() -> None:
    """Have Textual read the messages of mode 2031 as the keys in `Told`."""
    teach({"\x1b[?997;1n": Told.DARK, "\x1b[?997;2n": Told.LIGHT})


def teach(keys: Mapping[str, Enum]) -> None:
    """Have Textual, which in 8.2 does not know them, read these sequences as keys.

    A later Textual may know them, or keep its table elsewhere; then nothing is to be done here.
    """
    with contextlib.suppress(ImportError, TypeError):
        from textual import _ansi_sequences

        table = cast("dict[str, Any]", _ansi_sequences.ANSI_SEQUENCES_KEYS)
        for sequence, key in keys.items():
            table.setdefault(sequence, (key,))


def is_dark(environment: Mapping[str, str] = os.environ) -> bool | None:
    """Whether the terminal's background is dark; None if neither it nor COLORFGBG says so."""
    if (answer := _ask()) and (match := _BACKGROUND.search(answer)):
        # Each channel has one to four hexadecimal digits.
        red, green, blue = (int(part, 16) / (16 ** len(part) - 1) for part in match.groups())
        return 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
    last = environment.get("COLORFGBG", "").rpartition(";")[2]  # "15;0", "15;default;0"
    return int(last) not in (7, *range(9, 16)) if last.isdecimal() else None


def _ask() -> bytes:
    """What the terminal answers; empty where there is none."""
    if not (sys.__stdin__ and sys.__stdin__.isatty() and sys.__stderr__ and sys.__stderr__.isatty()):
        return b""
    answer, end = b"", time.monotonic() + ANSWER_WITHIN_S
    reads, writes = sys.__stdin__.fileno(), sys.__stderr__.fileno()  # those that Textual uses
    try:
        before = termios.tcgetattr(reads)
        try:
            tty.setcbreak(reads, termios.TCSANOW)
            os.write(writes, _QUESTION)
            while not _ANSWERED.search(answer) and (left := end - time.monotonic()) > 0:
                if select.select([reads], [], [], left)[0]:
                    answer += os.read(reads, 1024)
        finally:
            termios.tcsetattr(reads, termios.TCSANOW, before)
    except (OSError, termios.error):
        return b""
    return answer


def mend() -> None:
    """Have the terminal take and echo lines again, which a program that was killed may have ended.

    To be called before anything remembers the modes that it found. Without a terminal nothing happens.
    """
    with contextlib.suppress(termios.error, OSError, ValueError):
        modes = termios.tcgetattr(sys.stdin)
        modes[0] |= termios.ICRNL
        modes[1] |= termios.OPOST
        modes[3] |= termios.ECHO | termios.ICANON | termios.ISIG | termios.IEXTEN
        termios.tcsetattr(sys.stdin, termios.TCSANOW, modes)
