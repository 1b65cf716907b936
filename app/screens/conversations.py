"""The list of conversations as a dialog, where there is no room for the sidebar."""

from __future__ import annotations

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.screen import ModalScreen

from ..controller import Controller
from ..widgets.chat_list import ChatList


class ConversationsScreen(ModalScreen[ChatList.Chosen | None]):
    """Dismisses with what was chosen, or None. With `search` the cursor is in the search, after it."""

    def __init__(self, controller: Controller, *, search: str | None = None) -> None:
        super().__init__()
        self._list = ChatList(controller)
        self._search = search

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog", classes="dialog") as dialog:
            dialog.border_title = "Conversations"
            dialog.border_subtitle = "Esc closes"
            yield self._list

    async def on_mount(self) -> None:
        await self._list.enter(self._search)

    @on(ChatList.Chosen)
    def _chosen(self, event: ChatList.Chosen) -> None:
        self.dismiss(event)

    @on(ChatList.Left)
    def _left(self) -> None:
        self.dismiss(None)
