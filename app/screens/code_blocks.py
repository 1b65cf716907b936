"""The code blocks of a turn, one of which is to be copied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from ..text import inert


class CodeBlocksScreen(ModalScreen[str | None]):
    """Dismisses with the code that was chosen, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", "Close")]

    def __init__(self, blocks: Sequence[str]) -> None:
        super().__init__()
        self._blocks = blocks

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog", classes="dialog") as dialog:
            dialog.border_title = "Copy code"
            dialog.border_subtitle = "Enter copies   Esc closes"
            yield OptionList(*(Option(_entry(block)) for block in self._blocks), markup=False)

    def on_mount(self) -> None:
        options = self.query_one(OptionList)
        options.highlighted = len(self._blocks) - 1
        options.focus()

    @on(OptionList.OptionSelected)
    def _choose(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self._blocks[event.option_index])


def _entry(block: str) -> Content:
    lines = inert(block).strip("\n").split("\n")
    count = f"{len(lines)} line{'s' if len(lines) != 1 else ''}"
    return Content.assemble((lines[0].strip(), "bold"), ("\n" + count, "$text-muted"))
