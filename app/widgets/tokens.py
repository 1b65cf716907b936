"""The tokens of a reply as running text, each in the colour of how likely it was, with a cursor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.cells import cell_len, chop_cells
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from ...engine.events import Alternative, TokenScore
from ..text import visible

LEVELS = (0.9, 0.5, 0.2, 0.05)
"""Probabilities below which a token is of the next level; those of the last two are underlined too."""
UNLIKELY = LEVELS[2]


def probability(token: TokenScore | Alternative) -> float:
    return math.exp(token.logprob)


def level(share: float) -> int:
    """0 for what was to be expected up to 4 for a surprise."""
    return sum(share < limit for limit in LEVELS)


@dataclass(frozen=True)
class Cell:
    """A token, or as much of one as fits, on its line."""

    token: int
    text: str
    start: int
    """Columns before it."""

    @property
    def end(self) -> int:
        return self.start + cell_len(self.text)


def shown(text: str) -> str:
    """A token's text with nothing in it that takes no place on the screen."""
    text = visible(text) or "∅"
    return text if cell_len(text) else f"◌{text}"


def lay_out(texts: Sequence[str], width: int) -> list[list[Cell]]:
    """Lines of at most `width` columns: as a rule a line ends before a blank, and always after a newline."""
    lines: list[list[Cell]] = [[]]
    for token, text in enumerate(texts):
        line, parts = lines[-1], chop_cells(shown(text), width)
        if line and line[-1].end + cell_len(parts[0]) > width:
            word = next((at for at in range(len(line) - 1, 0, -1) if texts[line[at].token][:1] == " "), None)
            moved = [] if text[:1] == " " or word is None else line[word:]
            if moved and cell_len("".join(cell.text for cell in (*moved, Cell(0, parts[0], 0)))) <= width:
                del line[word:]
            else:
                moved = []
            lines.append([])
            for cell in moved:
                _append(lines[-1], cell.token, cell.text)
        for part in parts:
            if lines[-1] and lines[-1][-1].end + cell_len(part) > width:
                lines.append([])
            _append(lines[-1], token, part)
        if text.endswith("\n"):
            lines.append([])
    return lines if lines[-1] else lines[:-1]


def _append(line: list[Cell], token: int, text: str) -> None:
    line.append(Cell(token, text, line[-1].end if line else 0))


class TokenText(ScrollView, can_focus=True):
    """Shows tokens; the arrow keys and the mouse move the cursor among them."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        *(f"token--level-{number}" for number in range(len(LEVELS) + 1)),
        "token--odd",
        "token--cursor",
    }
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,h", "move(-1)", "Token before", show=False),
        Binding("right,l", "move(1)", "Next token", show=False),
        Binding("up,k", "move_line(-1)", "Line above", show=False),
        Binding("down,j", "move_line(1)", "Line below", show=False),
        Binding("home", "to(0)", "First token", show=False),
        Binding("end", "to(-1)", "Last token", show=False),
        Binding("n", "unlikely(1)", "Next unlikely token", show=False),
        Binding("p,N", "unlikely(-1)", "Unlikely token before", show=False),
        Binding("enter,tab", "choose", "Its alternatives", show=False),
    ]

    cursor: reactive[int] = reactive(0, init=False)

    @dataclass
    class Moved(Message):
        """The cursor is on another token."""

        token: int

    class Chosen(Message):
        """The user wants something else in the place of the cursor's token."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: Sequence[TokenScore] = ()
        self._lines: list[list[Cell]] = []
        self._line_of: dict[int, int] = {}

    def show(self, tokens: Sequence[TokenScore]) -> None:
        """Show these tokens, at least one, with the cursor on the first."""
        self.tokens = tokens
        self._lay_out()
        self.post_message(self.Moved(self.cursor))

    def on_resize(self) -> None:
        self._lay_out()

    def _lay_out(self) -> None:
        width = self.scrollable_content_region.width
        if not self.tokens or width < 1:
            return
        self._lines = lay_out([token.text for token in self.tokens], width)
        self._line_of = {cell.token: y for y, line in enumerate(self._lines) for cell in line}
        self.virtual_size = Size(width, len(self._lines))
        self.refresh()
        self._follow()

    def render_line(self, y: int) -> Strip:
        y += self.scroll_offset.y
        width = self.scrollable_content_region.width
        if y >= len(self._lines):
            return Strip.blank(width, self.rich_style)
        segments = [Segment(cell.text, self._style(cell.token)) for cell in self._lines[y]]
        return Strip(segments).adjust_cell_length(width, self.rich_style)

    def _style(self, token: int) -> Style:
        if token == self.cursor:
            return self.get_component_rich_style("token--cursor")
        number = level(probability(self.tokens[token]))
        if number == 0 and token % 2:  # so that one sees where a token ends
            return self.get_component_rich_style("token--odd")
        return self.get_component_rich_style(f"token--level-{number}")

    # The cursor

    def validate_cursor(self, token: int) -> int:
        return max(0, min(token, len(self.tokens) - 1))

    def watch_cursor(self) -> None:
        self.refresh()
        self._follow()
        self.post_message(self.Moved(self.cursor))

    def _follow(self) -> None:
        y = self._line_of.get(self.cursor, 0)
        self.scroll_to_region(Region(0, y, 1, 1), animate=False, immediate=True, force=True)

    def action_move(self, step: int) -> None:
        self.cursor += step

    def action_to(self, token: int) -> None:
        self.cursor = token % max(1, len(self.tokens))

    def action_move_line(self, step: int) -> None:
        """To the token above or below."""
        y = self._line_of.get(self.cursor, 0)
        if 0 <= y + step < len(self._lines):
            x = next(cell.start for cell in self._lines[y] if cell.token == self.cursor)
            line = self._lines[y + step]
            self.cursor = next((cell.token for cell in line if cell.end > x), line[-1].token)

    def action_unlikely(self, step: int) -> None:
        """To the nearest token that was unlikely, in this direction."""
        there = range(self.cursor + step, len(self.tokens) if step > 0 else -1, step)
        self.cursor = next((at for at in there if probability(self.tokens[at]) < UNLIKELY), self.cursor)

    def action_choose(self) -> None:
        self.post_message(self.Chosen())

    def on_click(self, event: events.Click) -> None:
        place = event.get_content_offset(self)
        if place is None or place.y + self.scroll_offset.y >= len(self._lines):
            return
        line = self._lines[place.y + self.scroll_offset.y]
        self.cursor = next((cell.token for cell in line if cell.end > place.x), line[-1].token)
