"""The messages that wait for the reply before them to end."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content
from textual.widgets import Static

from ..conversation import Turn
from ..text import one_line

SHOWN = 3


class QueuedMessages(Static):
    """A line for each of the next few; not there without any. The links take one back into the prompt."""

    ALLOW_SELECT = False

    def __init__(self) -> None:
        super().__init__(id="queue", markup=False)

    def show(self, messages: Sequence[Turn], paused: bool) -> None:
        lines = []
        for number, message in enumerate(messages[:SHOWN]):
            edit = Content.from_markup(f"[@click=screen.edit_queued({number})]edit[/]  ")
            drop = Content.from_markup(f"[@click=screen.drop_queued({number})]remove[/]  ")
            lines.append(edit + drop + _images(message) + Content(one_line(message.label)))
        if len(messages) > SHOWN:
            lines.append(Content(f"and {len(messages) - SHOWN} more"))
        state = "Paused · Enter sends the next" if paused else "Sent when the reply ends"
        lines.insert(
            0,
            Content.assemble(
                (f"Queued: {len(messages)}", "bold"), f"   {state}   Up takes the last one back"
            ),
        )
        self.update(Content("\n").join(lines))
        self.set_class(bool(messages), "-shown")


def _images(message: Turn) -> Content:
    """How many images go with the message; before its text, which may be longer than the line."""
    count = len(message.images)
    return Content(f"{count} image{'s' if count > 1 else ''}  " if count else "")
