"""The list of all conversations with its search: the same in the sidebar and in the dialog."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from ..controller import Controller
from ..database import HIT_END, HIT_START, Hit, Summary
from ..text import format_time, inert, one_line
from .type_ahead import type_into_field

_KEYS = "Enter opens   / searches   r renames   p pins   d deletes"


class ChatList(Vertical):
    """Open, search, rename, pin, delete and undo. Typing in the search shows what is found at once."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r", "rename", "Rename", show=False),
        Binding("p", "pin", "Pin", show=False),
        Binding("d,delete", "delete", "Delete", show=False),
        Binding("u", "undo", "Undo", show=False),
        Binding("down", "leave_search", "To the list", show=False),
        Binding("escape", "leave", "Back", show=False),
    ]

    @dataclass
    class Chosen(Message):
        """The user wants this conversation, at this turn if it was searched for."""

        conversation_id: str
        turn_id: str | None

    @dataclass
    class Left(Message):
        """The user is done with the list."""

    def __init__(self, controller: Controller) -> None:
        super().__init__()
        self._controller = controller
        self._lines: list[Summary | Hit] = []
        self._searched_for = ""
        """What `_lines` are of."""
        self._deleted: list[Summary] = []
        """What can be brought back, the last one at the end."""
        self._search = Input(placeholder="Search all chats", compact=True, select_on_focus=False, id="search")
        self._title = Input(placeholder="New title", compact=True, id="title")
        self._options = OptionList(markup=False)
        self._keys = Static(_KEYS, id="keys", markup=False)

    def compose(self) -> ComposeResult:
        yield self._search
        yield self._options
        yield self._title
        yield self._keys

    def on_mount(self) -> None:
        self._title.display = False

    async def fill(self) -> None:
        """Read the list again; the cursor stays in its line, unless something else is searched for."""
        text = self._search.value.strip()
        summaries = await self._controller.archive.summaries()
        words = text.casefold().split()
        self._lines = [each for each in summaries if all(word in each.title.casefold() for word in words)]
        if words:
            self._lines += await self._controller.archive.search(text)
        line = self._options.highlighted or 0 if text == self._searched_for else 0
        self._searched_for = text
        self._options.set_options([Option(_entry(each)) for each in self._lines])
        if self._lines:
            self._options.highlighted = min(line, len(self._lines) - 1)
        elif not self._deleted:
            self._say("Nothing is found." if words else "There is no saved conversation yet.")

    @property
    def _chosen(self) -> Summary | Hit | None:
        line = self._options.highlighted
        return self._lines[line] if line is not None and line < len(self._lines) else None

    def _say(self, text: str) -> None:
        self._keys.update(Content(text))

    async def enter(self, search: str | None = None) -> None:
        """Show the list as it is now, and take the focus; with the cursor in the search after `search`."""
        if search:
            self._search.value = search
            self._search.action_end()
        await self.fill()
        (self._options if search is None else self._search).focus()

    async def on_key(self, event: events.Key) -> None:
        await type_into_field(event, self.screen, self._options, self._search)

    def action_leave_search(self) -> None:
        if self._search.has_focus:  # the title is left with Enter or Esc
            self._options.focus()

    @work(exclusive=True)
    @on(Input.Changed, "#search")
    async def _searched(self) -> None:
        await self.fill()

    @on(Input.Submitted, "#search")
    async def _open_found(self) -> None:
        await self.fill()  # what was typed just before may not be searched for yet
        self._open()

    @on(OptionList.OptionSelected)
    def _open(self) -> None:
        if isinstance(chosen := self._chosen, Hit):
            self.post_message(self.Chosen(chosen.conversation_id, chosen.turn_id))
        elif chosen is not None:
            self.post_message(self.Chosen(chosen.id, None))

    @on(OptionList.OptionHighlighted)
    def _moved(self) -> None:
        if not self._deleted:
            self._say(_KEYS)

    def _summary(self) -> Summary | None:
        """The conversation that the cursor is on, None on a hit or while a text is typed."""
        if self.screen.focused is self._options and isinstance(chosen := self._chosen, Summary):
            return chosen
        return None

    async def action_pin(self) -> None:
        if chosen := self._summary():
            await self._controller.archive.pin(chosen.id, not chosen.pinned)
            await self.fill()

    async def action_delete(self) -> None:
        if chosen := self._summary():
            self._deleted.append(chosen)
            await self._controller.delete_conversation(chosen.id)
            self._say(f"Deleted: {one_line(chosen.title)}   u brings it back")
            await self.fill()

    async def action_undo(self) -> None:
        if self._deleted:
            await self._controller.archive.restore(self._deleted.pop().id)
            self._say(_KEYS)
            await self.fill()

    def action_rename(self) -> None:
        if chosen := self._summary():
            self._title.value = chosen.title
            self._title.display = True
            self.screen.set_focus(self._title)
            self._say("Enter keeps the new title   Esc goes back")

    @on(Input.Submitted, "#title")
    async def _renamed(self, event: Input.Submitted) -> None:
        if isinstance(chosen := self._chosen, Summary) and event.value.strip():
            await self._controller.rename_conversation(chosen.id, event.value)
        await self.action_leave()

    async def action_leave(self) -> None:
        """Leave the title as it is, or the list: who types on after Esc must not delete chats with it."""
        if self._title.display:
            self._title.display = False
            self._options.focus()
            self._say(_KEYS)
            await self.fill()
        else:
            self._search.value = ""
            self.post_message(self.Left())


def _entry(line: Summary | Hit) -> Content:
    title = one_line(line.title)
    if isinstance(line, Hit):
        who = "You: " if line.role == "user" else ""
        return Content.assemble((title, "bold"), "\n", (who, "$text-muted"), _snippet(line.snippet))
    counted = f"{line.questions} question{'s' if line.questions != 1 else ''}"
    details = " · ".join(part for part in (format_time(line.updated), counted, one_line(line.model)) if part)
    pin = ("● ", "$text-primary") if line.pinned else ""
    return Content.assemble(pin, (title, "bold"), ("\n" + details, "$text-muted"))


def _snippet(text: str) -> Content:
    """The text on one line, what was found highlighted."""
    parts = []
    for number, part in enumerate(re.split(f"[{HIT_START}{HIT_END}]", text)):
        parts.append(
            (re.sub(r"\s+", " ", inert(part)), "bold $text-primary" if number % 2 else "$text-muted")
        )
    return Content.assemble(*parts)
