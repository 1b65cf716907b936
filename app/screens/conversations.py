"""The list of conversations as a dialog, where there is no room for the sidebar."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen

from ..controller import Controller
from ..widgets.chat_list import ChatList


class ConversationsScreen(ModalScreen[ChatList.Chosen | None]):
    """Dismisses with what was chosen, or None. With `search` the cursor is in the search at first."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "close", "Close")]

    def __init__(self, controller: Controller, *, search: bool = False) -> None:
        super().__init__()
        self._list = ChatList(controller)
        self._search = search

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog", classes="dialog") as dialog:
            dialog.border_title = "Conversations"
            dialog.border_subtitle = "Esc closes"
            yield self._list

    def on_mount(self) -> None:
        if self._search:
            self._list.action_search()
        else:
            self._list.focus_list()

    @on(ChatList.Chosen)
    def _chosen(self, event: ChatList.Chosen) -> None:
        self.dismiss(event)

    async def action_close(self) -> None:
        if not await self._list.leave():
            self.dismiss(None)
