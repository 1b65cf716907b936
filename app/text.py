"""Text for people: durations and counts in words, and foreign text made harmless for a terminal."""

from __future__ import annotations

import re

# C0 and C1 control characters but tab and newline, and lone surrogates: they move the cursor, set the
# window's title, or cannot be encoded at all. A model's reply or a file's name may hold any of them.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def inert(text: str) -> str:
    """`text` without the characters that a terminal acts on; newlines and tabs stay."""
    return _CONTROLS.sub("", text)


def one_line(text: str) -> str:
    """`text` as one inert line."""
    return " ".join(inert(text).split())


_SIGNS = {" ": "·", "\n": "⏎", "\t": "⇥"}


def visible(text: str) -> str:
    """`text` with a sign for each blank, and the code of each character that would not be seen."""
    return "".join(_SIGNS.get(c) or (c if c.isprintable() else f"<{ord(c):x}>") for c in text)


def format_percent(share: float) -> str:
    """A share of 1: 62.1%, <0.1%."""
    return "<0.1%" if 0 < share < 0.0005 else f"{100 * share:.1f}%"


def format_tokens(count: int) -> str:
    """1 token, 1,234 tokens."""
    return f"{count:,} token{'s' if count != 1 else ''}"


def format_seconds(seconds: float) -> str:
    """A duration: 0.8 s, 42 s, 3 min 20 s."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
