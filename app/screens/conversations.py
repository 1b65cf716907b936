"""The list of saved conversations: open, rename, delete."""

from __future__ import annotations

import time
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from ..controller import Controller
from ..database import Summary
from ..text import one_line

_KEYS = "Enter opens   r renames   d deletes   Esc closes"


class ConversationsScreen(ModalScreen[str | None]):
    """Dismisses with the id of the conversation to open, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r", "rename", "Rename"),
        Binding("d,delete", "delete", "Delete"),
        Binding("escape", "close", "Close"),
    ]

    def __init__(self, controller: Controller) -> None:
        super().__init__()
        self._controller = controller
        self._summaries: list[Summary] = []
        self._asked: str | None = None
        """The conversation that a second press of the key deletes."""

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog", classes="dialog") as dialog:
            dialog.border_title = "Conversations"
            yield OptionList(markup=False)
            yield Input(placeholder="New title", compact=True)
            yield Static(_KEYS, id="keys", markup=False)

    async def on_mount(self) -> None:
        self.query_one(Input).display = False
        await self._fill()
        self.query_one(OptionList).focus()

    async def _fill(self) -> None:
        """Read the list again; the cursor stays in its line."""
        self._summaries = await self._controller.summaries()
        options = self.query_one(OptionList)
        line = options.highlighted or 0
        options.set_options([Option(_entry(summary), summary.id) for summary in self._summaries])
        if self._summaries:
            options.highlighted = min(line, len(self._summaries) - 1)
        else:
            self._say("There is no saved conversation yet.   Esc closes")

    @property
    def _chosen(self) -> Summary | None:
        line = self.query_one(OptionList).highlighted
        return self._summaries[line] if line is not None and self._summaries else None

    def _say(self, text: str, style: str = "") -> None:
        self.query_one("#keys", Static).update(Content.assemble((text, style)))

    @on(OptionList.OptionSelected)
    def _open(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_id)

    @on(OptionList.OptionHighlighted)
    def _moved(self) -> None:
        self._asked = None
        self._say(_KEYS)

    async def action_delete(self) -> None:
        if (chosen := self._chosen) is None:
            return
        if self._asked != chosen.id:
            self._asked = chosen.id
            self._say("Press d again to delete it for good   Esc closes", "$text-error")
            return
        await self._controller.delete_conversation(chosen.id)
        await self._fill()

    def action_rename(self) -> None:
        if chosen := self._chosen:
            title = self.query_one(Input)
            title.value = chosen.title
            title.display = True
            title.focus()
            self._say("Enter keeps the new title   Esc goes back")

    @on(Input.Submitted)
    async def _renamed(self, event: Input.Submitted) -> None:
        if (chosen := self._chosen) and event.value.strip():
            await self._controller.rename_conversation(chosen.id, event.value)
        await self._end_rename()

    async def _end_rename(self) -> None:
        self.query_one(Input).display = False
        self.query_one(OptionList).focus()
        self._say(_KEYS)
        await self._fill()

    async def action_close(self) -> None:
        if self.query_one(Input).display:
            await self._end_rename()
        else:
            self.dismiss(None)


def _entry(summary: Summary) -> Content:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(summary.updated))
    exchanges = (summary.turns + 1) // 2
    counted = f"{exchanges} question{'s' if exchanges != 1 else ''}"
    details = " · ".join(part for part in (when, counted, one_line(summary.model)) if part)
    return Content.assemble((one_line(summary.title), "bold"), ("\n" + details, "$text-muted"))
