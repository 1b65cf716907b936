"""What the prompt can be completed to, in a list over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from ..completion import Completion
from ..text import one_line

GAP = 3
"""Cells between two columns."""


class CommandList(OptionList, can_focus=False):
    """The prompt keeps the focus and asks `press` what a key means; there is no list when nothing fits."""

    def __init__(self, complete: Callable[[str], list[Completion]]) -> None:
        super().__init__(id="commands", markup=False, compact=True)
        self.display = False
        self._complete = complete
        self._found: list[Completion] = []

    def look_up(self, text: str) -> None:
        """Show what `text`, the prompt's, can become."""
        lines = self._complete(text)
        if lines != self._found:
            self._found = lines
            self.set_options(_entries(lines))
            self.highlighted = 0 if lines else None
            self.display = bool(lines)

    def press(self, key: str, text: str) -> str | None:
        """What the prompt's `text` becomes by `key`; None for a key that means what it always does.

        Such a one is Enter as well where nothing is left to complete.
        """
        self.look_up(text)  # what was typed just before may not be shown yet
        if self.highlighted is None:
            return None
        chosen = self._found[self.highlighted]
        if key == "up":
            self.action_cursor_up()
            return text
        if key == "down":
            self.action_cursor_down()
            return text
        if key == "tab":
            return chosen.begun
        if key == "enter" and chosen.text != text.rstrip():
            return chosen.chosen
        return None

    def completed(self, number: int) -> Completion:
        """The line of that number."""
        return self._found[number]


def _entries(lines: Sequence[Completion]) -> list[Option]:
    """In columns."""
    first = [
        Content(one_line(line.text)).stylize("$text-primary") + Content(f" {line.argument}".rstrip())
        for line in lines
    ]
    second = [Content(one_line(line.what)) for line in lines]
    width = [max((each.cell_length for each in column), default=0) + GAP for column in (first, second)]
    return [
        Option(
            text.pad_right(width[0] - text.cell_length)
            + what.pad_right(width[1] - what.cell_length)
            + line.key
        )
        for text, what, line in zip(first, second, lines, strict=True)
    ]
