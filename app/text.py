"""Text for people: times and counts in words, tables, and foreign text made harmless for a terminal."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Collection, Iterable, Sequence

# What some terminals and many programs take for the end of a line.
_LINE_ENDS = re.compile(r"\r\n|\u2028|\u2029")
# A model's reply or a file's name may hold any of these. C0 and C1 control characters but tab and newline
# move the cursor or set the window's title, and lone surrogates cannot be encoded at all.
_CONTROLS = (
    r"\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff"
    # These change the direction of the text after them, so that it reads as something that it is not.
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
    # Nobody sees these, and text may be hidden in them. (Joiners stay: some scripts and emoji need them.)
    r"\u200b\u2060-\u2064\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"
)
_ACTIVE = re.compile(f"[{_CONTROLS}]")
_ACTIVE_IN_A_LINE = re.compile(f"[{_CONTROLS}\t\n]")


def inert(text: str) -> str:
    """`text` without the characters that a terminal acts on or nobody sees; newlines and tabs stay."""
    return _ACTIVE.sub("", _LINE_ENDS.sub("\n", text))


def is_inert_line(text: str) -> bool:
    """Whether a terminal only shows `text`, in the line where it is written."""
    return _ACTIVE_IN_A_LINE.search(text) is None


def inert_line(text: str) -> str:
    """`text` made inert in its line; a blank stands for each tab and newline, and all blanks stay."""
    return inert(text).replace("\t", " ").replace("\n", " ")


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


def format_time(seconds: float) -> str:
    """A time in seconds since the epoch as the clock here shows it: 2026-11-25 18:30."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[str] = ()) -> None:
    """A table on stdout, the columns in `right` to the right.

    Into a file or a pipe, lines are as long as they need to be.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in headers:
        table.add_column(header, justify="right" if header in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else 1000).print(table)
