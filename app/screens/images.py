"""The image panel. The app attaches no images yet, and the panel says what does."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

NOT_YET = (
    "The app cannot attach images yet. To show one to a model that sees images: "
    "lite-llama-tui ask --image PATH."
)


class ImagesScreen(ModalScreen[None]):
    """The images attached to the message: none, and why."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,f4,enter", "dismiss", "Close")]

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog", classes="dialog") as dialog:
            dialog.border_title = "Images"
            dialog.border_subtitle = "Esc closes"
            yield Static(Content.assemble(("Attached: none", "bold")))
            yield Static(NOT_YET, classes="explanation", markup=False)
