"""The conversation, scrolled; it follows the reply until the user scrolls away from its end."""

from __future__ import annotations

from collections.abc import Sequence

from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from ..database import Turn
from .message import ReplyMessage, UserMessage

SHOWN_TURNS = 60
"""Of a long conversation only the end is shown at first: each turn is a handful of widgets."""
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
        self.anchor()

    async def show(self, turns: Sequence[Turn], *, all_turns: bool = False) -> None:
        """Replace what is shown by another conversation."""
        shown = turns if all_turns else turns[-SHOWN_TURNS:]
        widgets: list[Static | ReplyMessage] = [_widget(turn) for turn in shown]
        if not turns:
            widgets = [Static(HINT, id="hint")]
        elif len(shown) < len(turns):
            text = f"[@click=screen.show_all_turns]Show the {len(turns) - len(shown):,} turns before[/]"
            widgets.insert(0, Static(Content.from_markup(text), id="earlier"))
        with self.app.batch_update():
            await self.remove_children()
            await self.mount_all(widgets)
        self.anchor()

    async def add(self, turn: Turn) -> None:
        """A turn was added at the end: show it, wherever the user had scrolled to."""
        await self.query("#hint").remove()
        await self.mount(_widget(turn))
        self.anchor()

    async def remove_turn(self, turn: Turn) -> None:
        for widget in self.children:
            if isinstance(widget, UserMessage | ReplyMessage) and widget.turn.id == turn.id:
                await widget.remove()

    def reply(self, turn: Turn) -> ReplyMessage | None:
        """The widget of a reply, None when it is not shown."""
        replies = (widget for widget in reversed(self.children) if isinstance(widget, ReplyMessage))
        return next((reply for reply in replies if reply.turn.id == turn.id), None)


def _widget(turn: Turn) -> UserMessage | ReplyMessage:
    return UserMessage(turn) if turn.role == "user" else ReplyMessage(turn)
