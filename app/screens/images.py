"""The image panel. No model that this version runs sees images, and the panel says so."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static


def why_not(model: str | None) -> str:
    """The sentence about images for the model that is loaded."""
    subject = f"{model} reads text only" if model else "No model is loaded, and those so far read text only"
    return f"{subject}: the image is not attached. Models that see images come in a later version."


class ImagesScreen(ModalScreen[None]):
    """The images attached to the message: none, and why."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,f4,enter", "dismiss", "Close")]

    def __init__(self, model: str | None) -> None:
        super().__init__()
        self._model = model

    def compose(self) -> ComposeResult:
        reads = f"{self._model} reads text only." if self._model else "No model is loaded."
        with Vertical(id="dialog", classes="dialog") as dialog:
            dialog.border_title = "Images"
            dialog.border_subtitle = "Esc closes"
            yield Static(Content.assemble(("Attached: none", "bold")))
            yield Static(
                f"{reads} Models that see images come in a later version; until then an image that is pasted "
                "or dropped on the prompt is recognised, but not sent.",
                classes="explanation",
                markup=False,
            )
