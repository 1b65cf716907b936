"""What a model thought before its answer, behind one line that says how long and how much."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.events import Click
from textual.widgets import Static

from ...engine.events import Thinking
from ..text import format_seconds, format_tokens, inert


class ThinkingTitle(Static, can_focus=True):
    """The line; a click leaves the focus where it is, in the prompt."""

    FOCUS_ON_CLICK = False
    ALLOW_SELECT = False


class ThinkingBlock(Vertical):
    """Collapsed until the user opens it with a click or with Enter; not there without any thinking."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,space", "open_or_close", "Open or close", show=False)
    ]

    def __init__(self) -> None:
        super().__init__()
        self._title = ThinkingTitle(classes="title", markup=False)
        self._text = Static(classes="thoughts", markup=False)
        self._thinking, self._unfinished = Thinking(), False
        self.display = False

    def compose(self) -> ComposeResult:
        yield self._title
        yield self._text

    def show(self, thinking: Thinking, *, running: bool) -> None:
        """Show the thinking as it is now; `running`: it still goes on."""
        if (thinking, running) != (self._thinking, self._unfinished):
            self._thinking, self._unfinished = thinking, running
            self.display = bool(thinking.text)
            self._draw()

    @property
    def _is_open(self) -> bool:
        return self.has_class("-open")

    @on(Click, ".title")
    def action_open_or_close(self) -> None:
        if not self._unfinished and (transcript := self.query_ancestor(VerticalScroll)):
            transcript.release_anchor()  # what is opened unfolds below its title, which stays in view
        self.toggle_class("-open")
        self._draw()

    def _draw(self) -> None:
        symbol, what = "▾" if self._is_open else "▸", "Thinking…" if self._unfinished else "Thought for"
        figures = f"{format_seconds(self._thinking.seconds)} · {format_tokens(self._thinking.tokens)}"
        self._title.update(f"{symbol} {what} {figures}")
        if self._is_open:  # else nobody sees it, and to lay out a long text takes time
            self._text.update(Content(inert(self._thinking.text.strip("\n"))))
