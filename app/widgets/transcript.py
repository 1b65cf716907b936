"""The conversation, scrolled; it follows the reply until the user scrolls away from its end."""

from __future__ import annotations

from collections.abc import Sequence

from textual.containers import VerticalScroll
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from ..database import Turn
from .message import ReplyMessage, UserMessage

SHOWN_TURNS = 20
"""Of a long conversation only so many turns are shown at first, and more on demand."""
MOST_TURNS = 3 * SHOWN_TURNS
"""When a conversation has grown to more than that, only its end stays: what is shown is laid out often."""
HINT = Content.assemble(
    ("Ask something to begin", "bold $foreground"),
    "\n\n",
    ("Enter", "$text-primary"),
    " sends   ",
    ("Alt+Enter", "$text-primary"),
    " new line\n",
    ("Ctrl+P", "$text-primary"),
    " commands   ",
    ("F1", "$text-primary"),
    " help",
)


class Transcript(VerticalScroll, can_focus=False):
    """Shows turns. A turn's widget is found by the turn's id."""

    def on_mount(self) -> None:
        self._earlier: list[Turn] = []
        self._first_read: Turn | None = None
        self.anchor()

    async def show(self, turns: Sequence[Turn]) -> None:
        """Replace what is shown by the end of another conversation."""
        self._earlier = list(turns[:-SHOWN_TURNS])
        widgets = [_widget(turn) for turn in turns[-SHOWN_TURNS:]]
        with self.app.batch_update():
            await self._remove(self.children)
            await self.mount_all(widgets or [Static(HINT, id="hint")])
            await self._offer_earlier()
        self.anchor()

    async def show_earlier(self) -> None:
        """Show turns before those that are shown; what is in view stays there."""
        turns, self._earlier = self._earlier[-SHOWN_TURNS:], self._earlier[:-SHOWN_TURNS]
        first = next(child for child in self.children if isinstance(child, UserMessage | ReplyMessage))
        with self.app.batch_update():
            await self.mount_all([_widget(turn) for turn in turns], before=first)
            await self._offer_earlier()
            await self.show_left_out(self._first_read)
        self.call_after_refresh(self.scroll_to_widget, first, top=True, animate=False)

    async def show_left_out(self, first: Turn | None) -> None:
        """Draw a line before the first turn that the model reads; None: it reads all of them."""
        self._first_read = first
        await self.query("#left-out").remove()
        if first is not None and (widget := self._widget_of(first)):
            await self.mount(Static("The model no longer reads what is above", id="left-out"), before=widget)

    def _widget_of(self, turn: Turn) -> UserMessage | ReplyMessage | None:
        turns = (
            widget for widget in reversed(self.children) if isinstance(widget, UserMessage | ReplyMessage)
        )
        return next((widget for widget in turns if widget.turn.id == turn.id), None)

    async def _offer_earlier(self) -> None:
        await self.query("#earlier").remove()
        if self._earlier:
            text = f"[@click=screen.show_earlier]Show earlier turns[/] ({len(self._earlier):,} more)"
            await self.mount(Static(Content.from_markup(text), id="earlier"), before=0)

    async def add(self, turn: Turn) -> None:
        """A turn was added at the end: show it, wherever the user had scrolled to."""
        await self.query("#hint").remove()
        await self.mount(_widget(turn))
        shown = [child for child in self.children if isinstance(child, UserMessage | ReplyMessage)]
        if len(shown) > MOST_TURNS:
            old = shown[:-SHOWN_TURNS]
            self._earlier += [widget.turn for widget in old]
            with self.app.batch_update():
                await self._remove(old)
                await self._offer_earlier()
        self.anchor()

    async def _remove(self, widgets: Sequence[Widget]) -> None:
        for widget in widgets:
            for each in widget.walk_children(Widget, with_self=True):
                # Textual 8.2 keeps the lines that it drew of the last 1,024 widgets, removed or not.
                each._styles_cache.clear()
        await self.remove_children(widgets)

    async def remove_turn(self, turn: Turn) -> None:
        if widget := self._widget_of(turn):
            await widget.remove()

    def reply(self, turn: Turn) -> ReplyMessage | None:
        """The widget of a reply, None when it is not shown."""
        widget = self._widget_of(turn)
        return widget if isinstance(widget, ReplyMessage) else None


def _widget(turn: Turn) -> UserMessage | ReplyMessage:
    return UserMessage(turn) if turn.role == "user" else ReplyMessage(turn)
